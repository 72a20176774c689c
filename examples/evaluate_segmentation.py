"""Mean IoU of a segmentor on held-out images, each as a whole, at one size or averaged over several and their mirrors.

    python evaluate_segmentation.py --model_name_or_path outputs/mine --validation_dir my/validation

The multi-scale test of the original code:

    ... --scales 0.5 0.75 1.0 1.25 1.5 1.75 --flip

Without data, it draws coloured shapes. A killed run goes on where it stopped when the same command is given again.
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


try:
    import numpy as np
    from support.devices import choose_device
    from support.drawing import draw_comparison
    from support.errors import CommandParser, InputError, run_command
    from support.fingerprints import fingerprint
    from support.mean_iou import MeanIoU
    from support.pretrained import load_image_processor
    from support.resuming import check_same_run, write_atomically, write_json
    from support.segmentation_data import SegmentationDataArguments, read_class_names, validation_samples
    from support.segmentation_inference import WholeImageSegmentation, check_scales
    from support.segmentation_models import load_segmentor
    from support.shapes import write_image_folder
    from torch.utils.data import Dataset
    from tqdm.auto import tqdm
    from transformers import PreTrainedModel, logging
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


NUM_SHAPES_IMAGES, SHAPES_SEED = 100, 1
SETTINGS_FILE, STATE_FILE = "evaluation_settings.json", "evaluation_state.npz"
START_ANEW = "give the same value, another --output_dir, or --overwrite to start anew"


@dataclass
class EvaluationArguments:
    """What to evaluate and how."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of a trained segmentor."})
    output_dir: str = field(
        default="outputs/segmentation_scores",
        metadata={"help": "Folder to write results.json, per_class.txt and examples.png to."},
    )
    scales: list[float] = field(
        default_factory=lambda: [1.0], metadata={"help": "Multiples of the size in the model's preprocessor."}
    )
    flip: bool = field(default=False, metadata={"help": "Average with the mirror image."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda; the accelerator, if there is one."}
    )
    save_seconds: float = field(default=30.0, metadata={"help": "How often the state is saved for going on later."})
    num_examples: int = field(default=4, metadata={"help": "Images to draw with their true and predicted classes."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew instead of going on with an earlier run."})


def build_parser() -> CommandParser:
    """Parser of all flags."""
    return CommandParser([EvaluationArguments, SegmentationDataArguments], description=__doc__)


def use_shapes(data: SegmentationDataArguments, output: Path, processor) -> None:
    """Draw held-out shapes into the output folder, and let `data` name them."""
    size = min(processor.size.get("shortest_edge") or 96, 512)
    data.validation_dir = str(write_image_folder(output / "shapes", NUM_SHAPES_IMAGES, SHAPES_SEED, size))


def class_names_of(model: PreTrainedModel, data: SegmentationDataArguments) -> list[str]:
    """Names of the model's classes, which must be as many as the data's where those are named."""
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if data.class_names or data.num_labels:
        own = read_class_names(data)
        if len(own) != len(names):
            raise InputError(
                f"--class_names or --num_labels say {len(own)} classes, but {model.name_or_path} was trained on "
                f"{len(names)}: give the classes that it was trained on"
            )
        return own if data.class_names else names
    return names


def load_state(path: Path, metric: MeanIoU) -> int:
    """Take up the counts of an earlier run; return the index of the next image."""
    if not path.exists():
        return 0
    with np.load(path) as state:
        metric.confusion[:] = state["confusion"]
        return int(state["next_index"])


def save_state(path: Path, confusion: np.ndarray, next_index: int) -> None:
    """Leave the counts for a later run."""
    write_atomically(path, lambda file: np.savez(file, confusion=confusion, next_index=next_index))


def count_pixels(
    segment: WholeImageSegmentation, samples: Dataset, metric: MeanIoU, state: Path, save_seconds: float
) -> None:
    """Segment every image that is left and count its pixels, saving now and then, and when interrupted."""
    next_index, saved_at = load_state(state, metric), time.monotonic()
    # One assignment changes both, so an interruption never parts them.
    counted = metric.confusion.copy(), next_index
    with tqdm(desc="Evaluating", total=len(samples), initial=next_index) as bar:
        try:
            for index in range(next_index, len(samples)):
                image, labels = samples[index]
                metric.add(prediction=segment(image), reference=labels)
                counted = metric.confusion.copy(), index + 1
                bar.update()
                bar.set_postfix_str(f"mIoU {metric.scores()['mean_iou']:.4f}")
                if time.monotonic() - saved_at > save_seconds:
                    save_state(state, *counted)
                    saved_at = time.monotonic()
        finally:
            save_state(state, *counted)


def per_class_table(scores: dict, names: list[str]) -> str:
    """IoU and accuracy of each class that occurs, in percent, and their means."""
    width = max(len("class"), len("mean"), *map(len, names))
    lines = [f"{'class':{width}}    IoU  accuracy"]
    rows = zip(names, scores["per_category_iou"], scores["per_category_accuracy"], strict=True)
    for name, iou, accuracy in [*rows, ("mean", scores["mean_iou"], scores["mean_accuracy"])]:
        lines.append(f"{name:{width}}  {cell(iou, 5)}  {cell(accuracy, 8)}")
    return "\n".join(lines) + "\n"


def cell(share: float, width: int) -> str:
    """`share` in percent, or a dash where it is NaN."""
    return f"{'-':>{width}}" if np.isnan(share) else f"{100 * share:{width}.2f}"


def results_of(scores: dict, names: list[str], num_images: int) -> dict:
    """Scores for JSON, which has no NaN: null for classes that do not occur."""
    per_class = zip(names, scores["per_category_iou"], scores["per_category_accuracy"], strict=True)
    return {
        **{key: number(scores[key]) for key in ("mean_iou", "mean_accuracy", "overall_accuracy")},
        "num_images": num_images,
        "classes": [{"name": name, "iou": number(iou), "accuracy": number(acc)} for name, iou, acc in per_class],
    }


def number(value: float) -> float | None:
    """`value`, or `None` for NaN."""
    return None if np.isnan(value) else float(value)


def draw_examples(
    path: Path, segment: WholeImageSegmentation, samples: Dataset, names, title: str, count: int
) -> None:
    """Draw evenly spaced images with their true and predicted classes."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int))
    rows = [(*samples[index], segment(samples[index][0])) for index in chosen.tolist()]
    if rows:
        write_atomically(path, lambda file: draw_comparison(file, rows, names, title))


def evaluate(arguments: EvaluationArguments, data: SegmentationDataArguments) -> None:
    """Evaluate, write the results and say them."""
    check_scales(arguments.scales)
    output = Path(arguments.output_dir)
    model = load_segmentor(arguments.model_name_or_path).to(choose_device(arguments.device))
    processor = load_image_processor(arguments.model_name_or_path)
    if not (data.validation_dir or data.dataset_name):
        use_shapes(data, output, processor)
    names = class_names_of(model, data)
    samples = validation_samples(data, names)
    settings = {"digest of the weights": fingerprint(model), "num_images": len(samples), **asdict(data)}
    settings |= {name: getattr(arguments, name) for name in ("model_name_or_path", "scales", "flip")}
    if arguments.overwrite:
        for name in (SETTINGS_FILE, STATE_FILE):
            (output / name).unlink(missing_ok=True)
    check_same_run(output / SETTINGS_FILE, settings, START_ANEW)

    segment = WholeImageSegmentation(model, processor, arguments.scales, arguments.flip)
    metric = MeanIoU(len(names))
    count_pixels(segment, samples, metric, output / STATE_FILE, arguments.save_seconds)
    report(output, metric.scores(), names, len(samples))
    title = f"Mean IoU {metric.scores()['mean_iou']:.1%} on {len(samples)} held-out images"
    draw_examples(output / "examples.png", segment, samples, names, title, arguments.num_examples)


def report(output: Path, scores: dict, names: list[str], num_images: int) -> None:
    """Write the scores and print them."""
    write_json(output / "results.json", results_of(scores, names, num_images))
    table = per_class_table(scores, names)
    (output / "per_class.txt").write_text(table, encoding="utf-8")
    print(f"\n{table}\nMean IoU {scores['mean_iou']:.2%} on {num_images} images; {output} holds the details.")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: evaluate(*arguments))


if __name__ == "__main__":
    sys.exit(main())
