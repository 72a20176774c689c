"""COCO annotations, checked one by one: boxes inside the image, known categories, masks of the image's size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_masks

from .errors import InputError


FEWEST_COORDINATES = 6  # of a polygon: three corners


class Category(NamedTuple):
    """A kind of object: its id in the annotations, and its name; its label is its place among all, by id."""

    id: int
    name: str


def order_categories(categories: Sequence[Category], source: str) -> list[Category]:
    """Categories by id, so that a category's place is its label; ids may have gaps.

    Raises:
        InputError: There are none, or two have one id or one name.
    """
    if not categories:
        raise InputError(f"{source} has no categories, but objects belong to one: give at least one")
    for place, what in enumerate(("id", "name")):
        values = [category[place] for category in categories]
        for value in values:
            if values.count(value) > 1:
                raise InputError(f"{source} has two categories with the {what} {value!r}: give each its own")
    return sorted(categories)


def check_annotation(
    annotation: dict, size: tuple[int, int], categories: Sequence[Category], with_masks: bool
) -> dict:
    """A COCO annotation with all that is needed, and nothing else.

    Args:
        annotation: As in the file.
        size: Height and width of the image in pixels.
        categories: By label.
        with_masks: Whether `segmentation` is needed.

    Returns:
        `bbox` (left, top, width, height in pixels, inside the image), `label` from 0, `category_id`, `iscrowd`,
        `area` in pixels and, with masks, `segmentation` as compressed run lengths.

    Raises:
        InputError: Something is wrong; the message says what, but not which annotation.
    """
    bbox = clip_box(annotation.get("bbox"), size)
    checked = {
        "bbox": bbox,
        "label": find_label(annotation.get("category_id"), categories),
        "category_id": annotation["category_id"],
        "iscrowd": int(bool(annotation.get("iscrowd"))),
        "area": bbox[2] * bbox[3],
    }
    if with_masks:
        checked["segmentation"] = encode_segmentation(annotation.get("segmentation"), size)
        checked["area"] = float(coco_masks.area(checked["segmentation"]))
    area = annotation.get("area")
    return {**checked, "area": area} if is_number(area) else checked


def is_number(value) -> bool:
    """Whether `value` is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def find_label(category_id, categories: Sequence[Category]) -> int:
    """Label of a category, from 0."""
    ids = [category.id for category in categories]
    if isinstance(category_id, bool) or category_id not in ids:
        raise InputError(
            f"`category_id` is {category_id!r}, but it must be one of the ids of the {len(ids)} categories, "
            f"{listed(ids)}: mend it or give all categories"
        )
    return ids.index(category_id)


def listed(ids: Sequence[int]) -> str:
    """All ids, or where they begin and end."""
    return ", ".join(map(str, ids)) if len(ids) <= 10 else f"{ids[0]}, {ids[1]}, …, {ids[-1]}"


def clip_box(bbox, size: tuple[int, int]) -> list[float]:
    """The part of a box (left, top, width, height) that is inside an image of `size` (height, width)."""
    if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(is_number, bbox)):
        raise InputError(f"`bbox` is {bbox}, but it must be four numbers: left, top, width and height in pixels")
    left, top, width, height = bbox
    if width <= 0 or height <= 0:
        raise InputError(f"`bbox` is {bbox}, but its width and height must be positive: mend it or leave it out")
    (left, width), (top, height) = clip_side(left, width, size[1]), clip_side(top, height, size[0])
    if width <= 0 or height <= 0:
        raise InputError(
            f"`bbox` is {bbox}, which is outside the image of {size[1]} x {size[0]} pixels: give left, top, width and "
            "height in pixels of the image, or leave it out"
        )
    return [left, top, width, height]


def clip_side(start: float, length: float, limit: int) -> tuple[float, float]:
    """Start and length of what is in 0 to `limit`; untouched, lest it be rounded, where all of it is."""
    if start >= 0 and start + length <= limit:
        return start, length
    first = max(start, 0)
    return first, min(start + length, limit) - first


def encode_segmentation(segmentation, size: tuple[int, int]) -> dict:
    """Polygons or run lengths of a mask as compressed run lengths."""
    if not segmentation:
        raise InputError("there is no `segmentation`, but masks are learnt: add it or train a head without masks")
    encode = encode_runs if isinstance(segmentation, dict) else encode_polygons
    encoded = encode(segmentation, size)
    if coco_masks.area(encoded) == 0:
        raise InputError("`segmentation` has no pixel inside the image: mend it or leave it out")
    return encoded


def encode_polygons(polygons, size: tuple[int, int]) -> dict:
    """Polygons, lists of x, y, x, y, … in pixels, as compressed run lengths of all together."""
    for polygon in polygons if isinstance(polygons, list) else [polygons]:
        if not isinstance(polygon, list) or len(polygon) < FEWEST_COORDINATES or len(polygon) % 2:
            raise InputError(
                f"`segmentation` has {str(polygon)[:60]}, but a polygon is a list of x, y of at least three corners"
            )
        if not all(map(is_number, polygon)):
            raise InputError("`segmentation` has a polygon with what is no number: mend it")
    return coco_masks.merge(coco_masks.frPyObjects(polygons, *size))


def encode_runs(runs: dict, size: tuple[int, int]) -> dict:
    """Run lengths, a list or compressed as text, as compressed run lengths."""
    counts, given = runs.get("counts"), runs.get("size")
    if list(given or []) != list(size):
        raise InputError(
            f"`segmentation` is a mask with the `size` (height, width) {given}, but the image's is {list(size)}: give "
            "a mask of the image's size"
        )
    try:
        if isinstance(counts, list):
            return encode_counts(counts, size)
        encoded = {"size": list(size), "counts": counts.encode() if isinstance(counts, str) else bytes(counts)}
        coco_masks.decode(encoded)
    except (ValueError, TypeError) as error:
        raise InputError(f"`segmentation` has run lengths that cannot be read ({error}): mend them") from error
    return encoded


def encode_counts(counts: list[int], size: tuple[int, int]) -> dict:
    """Run lengths of background and object in turn, down the columns, as compressed run lengths."""
    if any(not isinstance(count, int) or count < 0 for count in counts) or sum(counts) != size[0] * size[1]:
        raise ValueError(f"they must be whole numbers that add up to {size[0] * size[1]}")
    return coco_masks.frPyObjects({"size": list(size), "counts": counts}, *size)


def objects_of(annotations: Sequence[dict]) -> list[dict]:
    """Checked annotations of single objects: crowds are not learnt."""
    return [annotation for annotation in annotations if not annotation["iscrowd"]]


def boxes_of(annotations: Sequence[dict]) -> np.ndarray:
    """Boxes of checked annotations (n, 4): left, top, right, bottom in pixels."""
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def masks_of(annotations: Sequence[dict], size: tuple[int, int]) -> np.ndarray:
    """Masks of checked annotations (n, height, width), bool."""
    masks = [coco_masks.decode(annotation["segmentation"]) for annotation in annotations]
    return np.array(masks, dtype=bool).reshape(-1, *size)
