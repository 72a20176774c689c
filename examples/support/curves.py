"""A picture of how a training run went."""

from collections.abc import Sequence
from typing import BinaryIO

from matplotlib.figure import Figure


TRAINING, HELD_OUT, ACCURACY = "#9aa5b1", "#1f5fa8", "#1a7f4b"


def draw_curves(file: BinaryIO, losses: Sequence[dict], scores: Sequence[dict], title: str) -> None:
    """Draw losses at the left and held-out accuracy at the right, over the steps.

    Args:
        file: Open file to write a PNG to.
        losses: Records with `step` and `loss`.
        scores: Records with `step`, `eval_loss` and `eval_accuracy`.
        title: Line at the top.
    """
    figure = Figure(figsize=(11, 4.2), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=13)
    left, right = figure.subplots(1, 2)
    marker = "o" if len(scores) <= 30 else None
    left.plot(*points(losses, "loss"), color=TRAINING, linewidth=1, label="training, as augmented and smoothed")
    left.plot(*points(scores, "eval_loss"), color=HELD_OUT, marker=marker, markersize=4, label="held out")
    left.set(ylabel="cross entropy")
    left.legend(frameon=False)
    steps, accuracies = points(scores, "eval_accuracy")
    right.plot(steps, [100 * accuracy for accuracy in accuracies], color=ACCURACY, marker=marker, markersize=4)
    right.annotate(
        f"{accuracies[-1]:.1%}",
        (steps[-1], 100 * accuracies[-1]),
        xytext=(-4, -14),
        textcoords="offset points",
        ha="right",
    )
    right.set(ylabel="held-out accuracy in percent")
    for axes in (left, right):
        axes.set_xlabel("step")
        axes.set_xlim(left=0)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format="png")


def points(records: Sequence[dict], key: str) -> tuple[list[int], list[float]]:
    """Steps and the values of `key`."""
    return [record["step"] for record in records], [record[key] for record in records]
