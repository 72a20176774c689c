"""What a detector learns from: images resized, normalised and maybe mirrored, with boxes and masks in step."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from .coco_annotations import boxes_of, masks_of, objects_of
from .detection_data import DetectionSamples
from .image_tensors import pad_to, to_tensor
from .variation import VariedExamples


@dataclass
class ResizingArguments:
    """How images are resized and augmented; the recipe gives the values."""

    shortest_edge: int = field(default=800, metadata={"help": "Images get this shorter side, in pixels,"})
    longest_edge: int = field(default=1333, metadata={"help": "unless the longer one would exceed this."})
    flip_probability: float = field(default=0.5, metadata={"help": "How often a training image is mirrored."})

    def __post_init__(self):
        """Check every value."""
        if not 0 < self.shortest_edge <= self.longest_edge:
            raise ValueError(
                f"--shortest_edge is {self.shortest_edge}, but it must be positive and at most --longest_edge, "
                f"{self.longest_edge}: change one of them"
            )
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"--flip_probability is {self.flip_probability}, but it must be from 0 to 1")


class DetectionExamples(VariedExamples, Dataset):
    """`pixel_values` (3, height, width) and `labels` of samples, mirrored anew in each epoch.

    Args:
        samples: Images and annotations.
        processor: The image processor that is saved with the model; images are resized and normalised by it.
        flip_probability: How often an image is mirrored.
        with_masks: Whether the labels have masks.
        seed: Seed of the run.
    """

    def __init__(self, samples: DetectionSamples, processor, flip_probability: float, with_masks: bool, seed: int):
        super().__init__(seed)
        self.samples, self.processor, self.with_masks = samples, processor, with_masks
        self.flip = v2.RandomHorizontalFlip(flip_probability)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        """One example; crowds are left out."""
        image, annotations = self.samples[index]
        objects, size = objects_of(annotations), image.size[::-1]
        boxes = tv_tensors.BoundingBoxes(torch.from_numpy(boxes_of(objects)), format="XYXY", canvas_size=size)
        inputs = {"image": to_tensor(image), "boxes": boxes}
        if self.with_masks:
            inputs["masks"] = tv_tensors.Mask(torch.from_numpy(masks_of(objects, size)))
        with self.variation(index):
            inputs = self.flip(inputs)
        inputs = {name: value.as_subclass(torch.Tensor) for name, value in inputs.items()}
        pixel_values = self.processor(inputs["image"], return_tensors="pt")["pixel_values"][0]
        labels = torch.tensor([annotation["label"] for annotation in objects], dtype=torch.int64)
        targets = {"class_labels": labels, "boxes": relative(inputs["boxes"], size)}
        if self.with_masks:
            targets["masks"] = resize_masks(inputs["masks"], pixel_values.shape[-2:])
        return {"pixel_values": pixel_values, "labels": targets}


def relative(boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Boxes (n, 4), corners in pixels, to centre x, centre y, width, height relative to `size` (height, width)."""
    height, width = size
    return box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])


def resize_masks(masks: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Masks (n, rows, columns) at another size, without interpolation."""
    if len(masks) == 0:
        return masks.new_zeros(0, *size)
    return F.resize(masks, list(size), interpolation=v2.InterpolationMode.NEAREST_EXACT)


def collate(examples: list[dict]) -> dict:
    """Batch of examples, padded at the right and bottom to the largest; `pixel_mask` is 1 where an image is."""
    images = [example["pixel_values"] for example in examples]
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    ones = [torch.ones(image.shape[-2:], dtype=torch.int64) for image in images]
    return {
        "pixel_values": torch.stack([pad_to(image, height, width, fill=0) for image in images]),
        "pixel_mask": torch.stack([pad_to(mask, height, width, fill=0) for mask in ones]),
        "labels": [example["labels"] for example in examples],
    }
