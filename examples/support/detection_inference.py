"""Finding the objects of images with any detector: CrossFormer's own, or one of Transformers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image
from transformers import PreTrainedModel

from .coco_shapes import encode_mask


class Detection(NamedTuple):
    """An object that was found.

    Attributes:
        label: Its class.
        score: How sure that is, in [0, 1].
        box: Left, top, right, bottom in pixels.
        segmentation: Its mask as compressed run lengths, if the model finds masks.
    """

    label: int
    score: float
    box: list[float]
    segmentation: dict | None


class ObjectFinder:
    """Model and preprocessing that find the objects of images of any sizes, most certain first.

    Args:
        model: Detector in evaluation mode.
        processor: The image processor saved with it.
        threshold: Detections with a higher score are kept, of those that the model itself keeps.
    """

    def __init__(self, model: PreTrainedModel, processor, threshold: float = 0.0):
        self.model, self.processor, self.threshold = model, processor, threshold

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image]) -> list[list[Detection]]:
        """Objects of each RGB image."""
        inputs = self.processor(list(images), return_tensors="pt").to(self.model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        outputs = self.model(**inputs)
        find = self.with_masks if getattr(outputs, "pred_masks", None) is not None else self.without_masks
        found = find(outputs, [(image.height, image.width) for image in images])
        return [sorted(objects, key=lambda detection: -detection.score) for objects in found]

    def without_masks(self, outputs, sizes: list[tuple[int, int]]) -> list[list[Detection]]:
        """Boxes only."""
        found = self.processor.post_process_object_detection(outputs, self.threshold, sizes)
        columns = [[image[name].tolist() for name in ("labels", "scores", "boxes")] for image in found]
        return [[Detection(*row, None) for row in zip(*image, strict=True)] for image in columns]

    def with_masks(self, outputs, sizes: list[tuple[int, int]]) -> list[list[Detection]]:
        """Boxes and masks; each mask is encoded at once, lest they fill the memory."""
        found = self.processor.post_process_instance_segmentation(
            outputs, self.threshold, target_sizes=sizes, return_binary_maps=True
        )
        return [
            [
                Detection(info["label_id"], info["score"], info["box"], encode_mask(mask.cpu().numpy()))
                for info, mask in zip(image["segments_info"], image["segmentation"], strict=True)
            ]
            for image in found
        ]
