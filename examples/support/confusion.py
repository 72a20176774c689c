"""Pictures of how a classifier errs, and how that changes with the size of the images."""

from collections.abc import Sequence
from textwrap import shorten
from typing import BinaryIO

import numpy as np
from matplotlib.figure import Figure


MAX_CLASSES = 30  # in one picture
MAX_NUMBERED = 20  # classes, with the share in each cell
CELL, MARGIN = 0.42, 2.6  # inches
LONGEST_NAME = 22  # characters


def draw_confusion(file: BinaryIO, confusion: np.ndarray, names: Sequence[str], title: str) -> None:
    """Draw which classes are taken for which.

    Of many classes only those with the most mistakes are drawn; a last column stands for the others.

    Args:
        file: Open file to write a PNG to.
        confusion: Images by true and predicted class (num_labels, num_labels).
        names: Names of the classes.
        title: Line at the top.
    """
    chosen = classes_to_draw(confusion)
    counts = confusion[np.ix_(chosen, chosen)]
    elsewhere = confusion[chosen].sum(axis=1) - counts.sum(axis=1)
    columns = [shorten(names[index], LONGEST_NAME, placeholder=" …") for index in chosen]
    rows = columns
    if elsewhere.any():
        counts, columns = np.column_stack([counts, elsewhere]), [*columns, "(others)"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    width, height = (MARGIN + CELL * max(len(labels), 6) for labels in (columns, rows))
    figure = Figure(figsize=(width + 0.6, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class")
    if len(chosen) <= MAX_NUMBERED:
        write_shares(axes, shares)
    figure.savefig(file, format="png")


def classes_to_draw(confusion: np.ndarray) -> np.ndarray:
    """Indices of the classes that occur, or of those with the most mistakes."""
    occurring = np.flatnonzero(confusion.sum(axis=1))
    mistakes = confusion.sum(axis=1) - confusion.diagonal()
    most = occurring[np.argsort(-mistakes[occurring], kind="stable")][:MAX_CLASSES]
    return np.sort(most)


def write_shares(axes, shares: np.ndarray) -> None:
    """Write the share in percent into each cell that is not nearly empty."""
    for (row, column), share in np.ndenumerate(shares):
        if share >= 0.005:
            color = "white" if share > 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=9)


def draw_sizes(file: BinaryIO, accuracies: dict[int, float], own_size: int) -> None:
    """Draw the accuracy by size of the images.

    Args:
        file: Open file to write a PNG to.
        accuracies: Share of right answers by height and width in pixels.
        own_size: The size that the model's image processor gives.
    """
    figure = Figure(figsize=(6.4, 4.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    sizes = sorted(accuracies)
    axes.plot(sizes, [100 * accuracies[size] for size in sizes], marker="o")
    axes.axvline(own_size, color="gray", linestyle=":", label=f"the model's own size, {own_size}")
    axes.set(xlabel="height and width in pixels", ylabel="top-1 accuracy in %", xticks=sizes)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, format="png")


def most_confused(confusion: np.ndarray, names: Sequence[str], count: int = 10) -> list[dict]:
    """The most frequent mistakes: true class, predicted class, and how often."""
    mistakes = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-mistakes, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(index, mistakes.shape) for index in order]
    return [
        {"true": names[row], "predicted": names[column], "count": int(mistakes[row, column])}
        for row, column in pairs
        if mistakes[row, column]
    ]
