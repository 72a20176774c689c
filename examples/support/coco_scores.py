"""Average precision as COCO defines it, computed by pycocotools."""

import contextlib
import io
from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .coco_annotations import Category
from .detection_data import CheckedImage
from .detection_inference import Detection


# Of COCOeval's `stats`, in its order.
SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
SCORES += ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")
KINDS = {"box": "bbox", "mask": "segm"}


def coco_results(detections: Iterable[Detection], image_id: int, category_ids: Sequence[int]) -> list[dict]:
    """Detections in an image in COCO's format for results.

    Args:
        detections: What was found.
        image_id: Where.
        category_ids: Id of the category of each label.
    """
    results = []
    for detection in detections:
        left, top, right, bottom = detection.box
        result = {
            "image_id": image_id,
            "category_id": category_ids[detection.label],
            "bbox": [left, top, right - left, bottom - top],
            "score": detection.score,
        }
        results.append({**result, **({"segmentation": detection.segmentation} if detection.segmentation else {})})
    return results


def ground_truth(images: Sequence[CheckedImage], categories: Sequence[Category]) -> COCO:
    """Checked annotations as pycocotools wants them; they are numbered from 1, as it takes 0 for none."""
    annotations = []
    for checked in images:
        for annotation in checked.annotations:
            annotations.append({**annotation, "image_id": checked.image.id, "id": len(annotations) + 1})
    return coco_of(
        images=[{"id": image.image.id, "height": image.size[0], "width": image.size[1]} for image in images],
        annotations=annotations,
        categories=[category._asdict() for category in categories],
    )


def coco_of(**dataset: list[dict]) -> COCO:
    """`COCO` without a file."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def coco_scores(truth: COCO, results: Sequence[dict], kind: str) -> dict:
    """Scores of all detections.

    Args:
        truth: What `ground_truth` returned.
        results: What `coco_results` returned, of all images.
        kind: `box` or `mask`.

    Returns:
        `SCORES` in [0, 1], `None` where there is nothing to score, and `classes`: `name`, `ap` and `ap50` of each.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, load_results(truth, results, kind), KINDS[kind])
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = [truth.cats[number]["name"] for number in evaluation.params.catIds]
    # (IoU thresholds, recalls, classes, areas, most detections): of all areas, with 100 detections.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    classes = [
        {"name": name, "ap": mean(precision[:, :, index]), "ap50": mean(precision[0, :, index])}
        for index, name in enumerate(names)
    ]
    return {**{name: number(stat) for name, stat in zip(SCORES, evaluation.stats, strict=True)}, "classes": classes}


def load_results(truth: COCO, results: Sequence[dict], kind: str) -> COCO:
    """Results for one kind of score: with its own field alone, from which pycocotools takes the areas."""
    field = "bbox" if kind == "box" else "segmentation"
    rows = [{name: row[name] for name in ("image_id", "category_id", "score", field)} for row in results]
    if rows:
        return truth.loadRes(rows)
    return coco_of(images=truth.dataset["images"], annotations=[], categories=truth.dataset["categories"])


def mean(precision: np.ndarray) -> float | None:
    """Mean of the values that are there: -1 stands for none."""
    there = precision[precision > -1]
    return float(there.mean()) if there.size else None


def number(stat: float) -> float | None:
    """A score, or none where pycocotools gives -1."""
    return None if stat < 0 else float(stat)
