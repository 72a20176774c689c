"""Generated shapes as a COCO-format folder: `images/` and `annotations.json` with boxes and masks."""

import json
import shutil
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_masks
from tqdm.auto import tqdm

from .resuming import write_json
from .shapes import CLASS_NAMES, ShapesImage, make_shapes_image


CATEGORIES = [{"id": index, "name": name} for index, name in enumerate(CLASS_NAMES) if index > 0]


def write_coco_folder(folder: Path, num_images: int, seed: int, size: int = 96) -> Path:
    """Write images to `folder/images` and what is in them to `folder/annotations.json`; return `folder`.

    A folder that is already complete is left as it is; one from an interrupted call is written anew.
    """
    description = {"num_images": num_images, "seed": seed, "size": size}
    finished = folder / "annotations.json"
    if finished.exists() and json.loads(finished.read_text()).get("info") == description:
        return folder
    shutil.rmtree(folder / "images", ignore_errors=True)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for index in tqdm(range(num_images), desc=f"Drawing {folder.name} images", leave=False):
        sample, name = make_shapes_image(seed, index, size), f"{index:05d}.png"
        sample.image.save(folder / "images" / name)
        images.append({"id": index + 1, "file_name": name, "width": size, "height": size})
        annotations += coco_annotations(sample, image_id=index + 1, first_id=len(annotations) + 1)
    write_json(finished, {"info": description, "images": images, "annotations": annotations, "categories": CATEGORIES})
    return folder


def coco_annotations(sample: ShapesImage, image_id: int, first_id: int) -> list[dict]:
    """The shapes of an image as COCO annotations, numbered from `first_id`."""
    annotations = []
    for mask, box, label in zip(sample.instance_masks, sample.boxes.tolist(), sample.labels.tolist(), strict=True):
        left, top, right, bottom = box
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": label,
                "bbox": [left, top, right - left, bottom - top],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": encode_mask(mask),
            }
        )
    return annotations


def encode_mask(mask: np.ndarray) -> dict:
    """Booleans (height, width) as COCO's compressed run lengths, fit for JSON."""
    encoded = coco_masks.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode("ascii")}
