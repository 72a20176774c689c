"""Top-1 and top-5 accuracy, loss, speed and confusion of a classifier, on any images and at any size.

    python evaluate_classification.py --model_name_or_path outputs/mine --validation_dir my/validation

A table across sizes shows what dynamic position bias is good for, as no weight depends on the size:

    ... --image_sizes 160 192 224 256 320

Images are prepared by the model's own image processor; at another size what it resizes to before it crops grows in
proportion. The classes of model and data set are matched by name. A killed run goes on where it stopped when the same
command is given again.
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path


try:
    import torch
    from support.class_matching import match_classes
    from support.classification_data import ClassificationDataArguments, load_images
    from support.classification_datasets import ImageTable, build_dataset, collate
    from support.classification_models import load_classifier, load_processor
    from support.classification_scores import ClassificationScores
    from support.classification_transforms import EvaluationTransform, image_size_of
    from support.confusion import draw_confusion, draw_sizes, most_confused
    from support.devices import choose_device
    from support.errors import CommandParser, InputError, run_command
    from support.fingerprints import fingerprint
    from support.resuming import check_same_run, write_atomically, write_json
    from torch.utils.data import DataLoader, Dataset, Subset
    from tqdm.auto import tqdm
    from transformers import PreTrainedModel, logging
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


SETTINGS_FILE = "evaluation_settings.json"
START_ANEW = "give the same value, another --output_dir, or --overwrite to start anew"
COLUMNS = {"top1": "top-1 %", "top5": "top-5 %", "loss": "loss", "images_per_second": "images/s"}


@dataclass
class EvaluationArguments:
    """What to evaluate and how."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of a trained classifier."})
    output_dir: str = field(
        default="outputs/classification_scores",
        metadata={"help": "Folder to write results.json, table.txt and the pictures to."},
    )
    image_sizes: list[int] = field(
        default_factory=list,
        metadata={"help": "Heights and widths in pixels; unless given, that of the model's image processor."},
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images in a batch."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read images."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda; the accelerator, if there is one."}
    )
    save_seconds: float = field(default=30.0, metadata={"help": "How often the state is saved for going on later."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew instead of going on with an earlier run."})

    def __post_init__(self):
        """Refuse sizes that no image has."""
        values = {"image_sizes": self.image_sizes, "per_device_eval_batch_size": [self.per_device_eval_batch_size]}
        for name, numbers in values.items():
            if min(numbers, default=1) < 1:
                raise ValueError(f"--{name} is {min(numbers)}, but it must be at least 1")


@dataclass
class Progress:
    """What was counted at one size.

    Attributes:
        scores: The scores so far.
        next_index: Number of images counted.
        seconds: Time that it took, reading included.
        done: Whether these are all.
    """

    scores: ClassificationScores
    next_index: int = 0
    seconds: float = 0.0
    done: bool = False

    def save(self, path: Path) -> None:
        """Leave it for a later run."""
        state = {**vars(self), "scores": self.scores.state_dict()}
        write_atomically(path, lambda file: torch.save(state, file))

    def load(self, path: Path) -> None:
        """Take up what an earlier run left, if it did."""
        if path.exists():
            state = torch.load(path)
            self.scores.load_state_dict(state.pop("scores"))
            vars(self).update(state)

    def results(self) -> dict[str, float]:
        """Scores and speed."""
        return {**self.scores.compute(), "images_per_second": self.next_index / self.seconds}


def score_images(
    model: PreTrainedModel, dataset: Dataset, classes: torch.Tensor, progress: Progress, path: Path, arguments
) -> None:
    """Classify every image that is left and count it; counts in a table are saved now and then.

    Args:
        model: In evaluation mode.
        dataset: All images at one size.
        classes: The model's class for each label (num_classes,).
        progress: What was counted before; it is changed.
        path: Where it is saved.
        arguments: For batches and how often to save.
    """
    is_table = isinstance(dataset, ImageTable)
    left = Subset(dataset, range(progress.next_index, len(dataset))) if is_table else dataset
    loader = DataLoader(
        left,
        batch_size=arguments.per_device_eval_batch_size,
        num_workers=arguments.dataloader_num_workers,
        collate_fn=collate,
    )
    started = saved_at = time.monotonic()
    before = progress.seconds
    with tqdm(desc="Evaluating", total=len(dataset) if is_table else None, initial=progress.next_index) as bar:
        for batch in loader:
            progress.scores.add(classify(model, batch["pixel_values"]), classes[batch["labels"]])
            progress.next_index += len(batch["labels"])
            progress.seconds = before + time.monotonic() - started
            bar.update(len(batch["labels"]))
            bar.set_postfix_str(f"top-1 {progress.scores.compute()['top1']:.2%}")
            if is_table and time.monotonic() - saved_at > arguments.save_seconds:
                progress.save(path)
                saved_at = time.monotonic()
    progress.done = True
    progress.save(path)


@torch.inference_mode()
def classify(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """Logits (batch, num_labels) of a batch of images.

    Raises:
        InputError: The model does not take images of this size.
    """
    try:
        return model(pixel_values.to(model.device, model.dtype)).logits
    except ValueError as error:
        size = pixel_values.shape[-1]
        raise InputError(
            f"--image_sizes has {size}, which {type(model).__name__} does not take ({error}): give another size"
        ) from error


def check_settings(arguments: EvaluationArguments, data, model: PreTrainedModel) -> None:
    """Refuse to go on with another run's counts; remove them if told to."""
    output = Path(arguments.output_dir)
    if arguments.overwrite:
        for path in [output / SETTINGS_FILE, *output.glob("state-*.pt")]:
            path.unlink(missing_ok=True)
    settings = {"digest of the weights": fingerprint(model), "model_name_or_path": arguments.model_name_or_path}
    check_same_run(output / SETTINGS_FILE, {**settings, **asdict(data)}, START_ANEW)


def evaluate(arguments: EvaluationArguments, data: ClassificationDataArguments) -> None:
    """Evaluate at each size, write the results and say them."""
    model = load_classifier(arguments.model_name_or_path).to(choose_device(arguments.device))
    processor = load_processor(arguments.model_name_or_path)
    images = load_images(data)
    names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    classes = torch.tensor(match_classes(names, images.names))
    check_settings(arguments, data, model)

    results, own_size = {}, image_size_of(processor)
    for size in arguments.image_sizes or [own_size]:
        path = Path(arguments.output_dir) / f"state-{size}.pt"
        progress = Progress(ClassificationScores(len(names)))
        progress.load(path)
        if not progress.done:
            dataset = build_dataset(
                images.validation, EvaluationTransform(processor, size), skip_broken=data.skip_broken_images
            )
            score_images(model, dataset, classes, progress, path, arguments)
        results[size] = progress
    report(Path(arguments.output_dir), results, names, own_size)


def table(results: dict[int, dict]) -> str:
    """Scores by size."""
    lines = [f"{'size':>5}" + "".join(f"{heading:>10}" for heading in COLUMNS.values())]
    for size, scores in results.items():
        cells = (100 * scores["top1"], 100 * scores["top5"], scores["loss"], scores["images_per_second"])
        lines.append(f"{size:5}" + "".join(f"{cell:10.2f}" for cell in cells))
    return "\n".join(lines) + "\n"


def class_scores(confusion, names: list[str]) -> list[dict]:
    """Accuracy and number of images of each class that occurs."""
    counts = confusion.sum(axis=1)
    return [
        {"name": name, "accuracy": float(right / count), "num_images": int(count)}
        for name, right, count in zip(names, confusion.diagonal(), counts, strict=True)
        if count
    ]


def report(output: Path, progress: dict[int, Progress], names: list[str], own_size: int) -> None:
    """Write scores and pictures, and print the table."""
    scores = {size: counted.results() for size, counted in progress.items()}
    details = {size: draw(output, size, counted, names) for size, counted in progress.items()}
    if len(scores) > 1:
        accuracies = {size: row["top1"] for size, row in scores.items()}
        write_atomically(output / "sizes.png", lambda file: draw_sizes(file, accuracies, own_size))
    num_images = max(counted.next_index for counted in progress.values())
    sizes = {size: {**scores[size], **details[size]} for size in scores}
    write_json(output / "results.json", {"num_images": num_images, "image_sizes": sizes})
    (output / "table.txt").write_text(table(scores), encoding="utf-8")
    print(f"\n{table(scores)}\n{num_images:,} images; {output} holds the details.")


def draw(output: Path, size: int, counted: Progress, names: list[str]) -> dict:
    """Draw which classes are taken for which at one size; return the details for JSON."""
    confusion = counted.scores.confusion.numpy()
    share = confusion.trace() / counted.next_index
    title = f"{share:.1%} of {counted.next_index:,} images are right at {size} pixels"
    write_atomically(output / f"confusion-{size}.png", lambda file: draw_confusion(file, confusion, names, title))
    return {"classes": class_scores(confusion, names), "most_confused": most_confused(confusion, names)}


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = CommandParser([EvaluationArguments, ClassificationDataArguments], description=__doc__)
    arguments = parser.parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: evaluate(*arguments))


if __name__ == "__main__":
    sys.exit(main())
