"""COCO's average precision of a detector on held-out images: for boxes, and for masks where the model finds them.

    python evaluate_detection.py --model_name_or_path outputs/mine --validation_dir my/validation

COCO's own folders:

    ... --validation_dir coco/val2017 --validation_annotations coco/annotations/instances_val2017.json

Without data, it draws coloured shapes. A killed run goes on where it stopped when the same command is given again.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


try:
    import numpy as np
    from support.coco_annotations import Category
    from support.coco_scores import coco_results, coco_scores, ground_truth
    from support.coco_shapes import write_coco_folder
    from support.detection_data import (
        DetectionDataArguments,
        DetectionSamples,
        Source,
        usable_samples,
        validation_source,
    )
    from support.detection_drawing import draw_truth_and_detections
    from support.detection_inference import Detection, ObjectFinder
    from support.detection_models import has_masks, load_detector, size_check
    from support.devices import choose_device
    from support.errors import CommandParser, InputError, run_command
    from support.fingerprints import fingerprint
    from support.pretrained import load_image_processor
    from support.resuming import check_same_run, write_atomically, write_json
    from tqdm.auto import tqdm
    from transformers import PreTrainedModel, logging
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


NUM_SHAPES_IMAGES, SHAPES_SEED = 100, 1
SETTINGS_FILE, DETECTIONS_FILE = "evaluation_settings.json", "detections.jsonl"
COLUMNS = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "ap_small": "small", "ap_medium": "medium", "ap_large": "large"}
START_ANEW = "give the same value, another --output_dir, or --overwrite to start anew"


@dataclass
class EvaluationArguments:
    """What to evaluate and how."""

    model_name_or_path: str = field(
        metadata={"help": "Folder or Hub name of a trained detector or instance segmenter."}
    )
    output_dir: str = field(
        default="outputs/detection_scores",
        metadata={"help": "Folder to write results.json, per_class.txt, detections.jsonl and examples.png to."},
    )
    score_threshold: float = field(
        default=0.0, metadata={"help": "Detections with a higher score count, of those that the model itself keeps."}
    )
    batch_size: int = field(default=1, metadata={"help": "Images that are computed together."})
    device: str | None = field(
        default=None, metadata={"help": "Such as cpu or cuda; the accelerator, if there is one."}
    )
    save_seconds: float = field(default=30.0, metadata={"help": "How often detections are saved for going on later."})
    num_examples: int = field(default=4, metadata={"help": "Images to draw with their true and found objects."})
    drawn_score: float = field(default=0.5, metadata={"help": "Lowest score of the objects drawn there."})
    overwrite: bool = field(default=False, metadata={"help": "Start anew instead of going on with an earlier run."})

    def __post_init__(self):
        """Check every value."""
        if self.batch_size < 1:
            raise ValueError(f"--batch_size is {self.batch_size}, but it must be at least 1")
        for name in ("score_threshold", "drawn_score"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, but scores are from 0 to 1")


def build_parser() -> CommandParser:
    """Parser of all flags."""
    return CommandParser([EvaluationArguments, DetectionDataArguments], description=__doc__)


def use_shapes(data: DetectionDataArguments, output: Path, processor) -> None:
    """Draw held-out shapes into the output folder, and let `data` name them."""
    size = min(dict(processor.size).get("shortest_edge") or 96, 512)
    data.validation_dir = str(write_coco_folder(output / "shapes", NUM_SHAPES_IMAGES, SHAPES_SEED, size))


def categories_by_label(model: PreTrainedModel, source: Source) -> list[Category]:
    """The category of the annotations that each label of the model stands for: by name, or else in order.

    Raises:
        InputError: The model has another number of classes.
    """
    names = [model.config.id2label[label] for label in range(model.config.num_labels)]
    by_name = {category.name: category for category in source.categories}
    if len(names) != len(by_name):
        raise InputError(
            f"{source.name} has {len(by_name)} categories, but {model.name_or_path} was trained on {len(names)}: give "
            "annotations with the categories that it was trained on"
        )
    if set(names) == set(by_name):
        return [by_name[name] for name in names]
    print(f"The model's classes have other names than the categories, such as {names[0]}: they are taken in order.")
    return source.categories


def read_detections(path: Path) -> dict[int, list[dict]]:
    """Detections that an earlier run left, by image; a line that was not written to its end is removed."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        write_atomically(path, lambda file: file.write(whole))
    return {row["image_id"]: row["detections"] for row in map(json.loads, whole.splitlines())}


def append_detections(path: Path, found: dict[int, list[dict]]) -> None:
    """Leave detections for a later run, one image a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"image_id": image, "detections": results}) + "\n" for image, results in found.items()]
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def detect_rest(
    finder: ObjectFinder, samples: DetectionSamples, category_ids: Sequence[int], path: Path, arguments
) -> list[dict]:
    """Detections in all images; those in images that are left are appended to `path` now and then, and at the end."""
    done = read_detections(path)
    left = [index for index, checked in enumerate(samples.images) if checked.image.id not in done]
    unsaved, saved_at = {}, time.monotonic()
    with tqdm(desc="Evaluating", total=len(samples), initial=len(samples) - len(left)) as bar:
        try:
            for start in range(0, len(left), arguments.batch_size):
                batch = left[start : start + arguments.batch_size]
                unsaved |= detect_batch(finder, samples, batch, category_ids)
                bar.update(len(batch))
                if time.monotonic() - saved_at > arguments.save_seconds:
                    append_detections(path, unsaved)
                    done, unsaved, saved_at = done | unsaved, {}, time.monotonic()
        finally:
            append_detections(path, unsaved)
    return [result for results in (done | unsaved).values() for result in results]


def detect_batch(
    finder: ObjectFinder, samples: DetectionSamples, indices: list[int], category_ids: Sequence[int]
) -> dict[int, list[dict]]:
    """Detections in some images in COCO's format, by id of the image."""
    ids = [samples.images[index].image.id for index in indices]
    found = finder([samples[index][0] for index in indices])
    return {number: coco_results(objects, number, category_ids) for number, objects in zip(ids, found, strict=True)}


def table(rows: dict[str, dict]) -> str:
    """Scores by name of the row, in percent; a dash where there is nothing to score."""
    width = max(len("class"), *map(len, rows))
    lines = [" " * width + "".join(f"{heading:>8}" for heading in COLUMNS.values())]
    for name, scores in rows.items():
        lines.append(f"{name:{width}}" + "".join(f"{cell(scores[column]):>8}" for column in COLUMNS))
    return "\n".join(lines) + "\n"


def per_class_table(scores: dict[str, dict]) -> str:
    """AP and AP50 of each class, of boxes and of masks, in percent."""
    names = [row["name"] for row in next(iter(scores.values()))["classes"]]
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':{width}}" + "".join(f"{kind + ' AP':>10}{kind + ' AP50':>12}" for kind in scores)]
    for index, name in enumerate(names):
        rows = [kind["classes"][index] for kind in scores.values()]
        lines.append(f"{name:{width}}" + "".join(f"{cell(row['ap']):>10}{cell(row['ap50']):>12}" for row in rows))
    return "\n".join(lines) + "\n"


def cell(score: float | None) -> str:
    """`score` in percent."""
    return "-" if score is None else f"{100 * score:.1f}"


def objects_in_truth(annotations: Sequence[dict], labels: dict[int, int]) -> list[Detection]:
    """True objects as something to draw; `labels` are by category id."""
    objects = []
    for annotation in annotations:
        left, top, width, height = annotation["bbox"]
        box = [left, top, left + width, top + height]
        label = labels[annotation["category_id"]]
        objects.append(Detection(label, None, box, annotation.get("segmentation")))
    return objects


def draw_examples(
    path: Path, finder: ObjectFinder, samples: DetectionSamples, categories, title: str, arguments
) -> None:
    """Draw evenly spaced images with their true objects and those found."""
    count = min(arguments.num_examples, len(samples))
    labels = {category.id: label for label, category in enumerate(categories)}
    rows = []
    for index in np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int)).tolist():
        image, annotations = samples[index]
        found = [one for one in finder([image])[0] if one.score >= arguments.drawn_score]
        rows.append((image, objects_in_truth(annotations, labels), found))
    if rows:
        names = [category.name for category in categories]
        write_atomically(path, lambda file: draw_truth_and_detections(file, rows, names, title))


def start_run(output: Path, settings: dict, overwrite: bool) -> None:
    """Make sure that what is in the output folder belongs to this run, or remove it."""
    if overwrite:
        for name in (SETTINGS_FILE, DETECTIONS_FILE):
            (output / name).unlink(missing_ok=True)
    check_same_run(output / SETTINGS_FILE, settings, START_ANEW)


def annotated_with_masks(source: Source) -> bool:
    """Whether any annotation has a mask."""
    return any(annotation.get("segmentation") for image in source.images for _, annotation in image.annotations)


def evaluate(arguments: EvaluationArguments, data: DetectionDataArguments) -> None:
    """Evaluate, write the results and say them."""
    output = Path(arguments.output_dir)
    model = load_detector(arguments.model_name_or_path).to(choose_device(arguments.device))
    processor = load_image_processor(arguments.model_name_or_path)
    if not (data.validation_dir or data.dataset_name):
        use_shapes(data, output, processor)
    source = validation_source(data)
    categories = categories_by_label(model, source)
    with_masks = has_masks(model.config) and annotated_with_masks(source)
    samples = usable_samples(source, data, with_masks, size_check(model, processor), "validation")
    settings = {"digest of the weights": fingerprint(model), "num_images": len(samples), **asdict(data)}
    settings |= {name: getattr(arguments, name) for name in ("model_name_or_path", "score_threshold")}
    start_run(output, settings, arguments.overwrite)

    finder = ObjectFinder(model, processor, arguments.score_threshold)
    category_ids = [category.id for category in categories]
    results = detect_rest(finder, samples, category_ids, output / DETECTIONS_FILE, arguments)
    truth = ground_truth(samples.images, source.categories)
    scores = {kind: coco_scores(truth, results, kind) for kind in (("box", "mask") if with_masks else ("box",))}
    report(output, scores, len(samples))
    title = ", ".join(f"{kind} AP50 {cell(score['ap50'])} %" for kind, score in scores.items())
    title += f" on {len(samples)} held-out images"
    draw_examples(output / "examples.png", finder, samples, categories, title, arguments)


def report(output: Path, scores: dict[str, dict], num_images: int) -> None:
    """Write the scores and print them."""
    write_json(output / "results.json", {"num_images": num_images, **scores})
    (output / "per_class.txt").write_text(per_class_table(scores), encoding="utf-8")
    print(f"\n{per_class_table(scores)}\n{table(scores)}\n{num_images} images; {output} holds the details.")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: evaluate(*arguments))


if __name__ == "__main__":
    sys.exit(main())
