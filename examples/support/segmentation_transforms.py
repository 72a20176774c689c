"""Augmentation of images with masks, as in mmsegmentation's pipeline for the original recipes, and for tests."""

from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F
from transformers import SegformerImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .image_tensors import pad_to, to_tensor
from .resizing import SIZE_DIVISOR, fit_size, round_up
from .segmentation_data import IGNORE_INDEX
from .variation import VariedExamples


CROP_ATTEMPTS = 10


@dataclass
class AugmentationArguments:
    """How images are resized and augmented; the recipe gives the values."""

    shortest_edge: int = field(default=512, metadata={"help": "Images are made as large as fits this shorter side"})
    longest_edge: int = field(default=2048, metadata={"help": "and this longer side, in pixels."})
    min_ratio: float = field(default=0.5, metadata={"help": "In training, both sides are multiplied by at least this"})
    max_ratio: float = field(default=2.0, metadata={"help": "and at most this, at random."})
    crop_size: int = field(default=512, metadata={"help": "Height and width of training crops in pixels."})
    max_class_share: float = field(
        default=0.75, metadata={"help": "Crops of which one class fills more are drawn again, up to ten times."}
    )
    photometric_distortion: bool = field(
        default=True, metadata={"help": "Vary brightness, contrast, saturation and hue."}
    )

    def __post_init__(self):
        """Check every value."""
        for name in ("shortest_edge", "longest_edge", "min_ratio"):
            if getattr(self, name) <= 0:
                raise ValueError(f"--{name} is {getattr(self, name)}, but it must be positive: give a larger one")
        if self.crop_size < SIZE_DIVISOR:
            raise ValueError(f"--crop_size is {self.crop_size}, but it must be at least {SIZE_DIVISOR}: give more")
        for smaller, larger in (("shortest_edge", "longest_edge"), ("min_ratio", "max_ratio")):
            if getattr(self, smaller) > getattr(self, larger):
                raise ValueError(
                    f"--{smaller} is {getattr(self, smaller)}, but it must be at most --{larger}, "
                    f"{getattr(self, larger)}: change one of them"
                )


class RandomRescale(v2.Transform):
    """Make an image as large as fits both edges times a random ratio; bilinear, like OpenCV without antialiasing."""

    def __init__(self, longest_edge: int, shortest_edge: int, min_ratio: float, max_ratio: float):
        super().__init__()
        self.longest_edge, self.shortest_edge = longest_edge, shortest_edge
        self.min_ratio, self.max_ratio = min_ratio, max_ratio

    def make_params(self, flat_inputs: list) -> dict:
        """Draw the ratio."""
        ratio = torch.empty(()).uniform_(self.min_ratio, self.max_ratio).item()
        size = fit_size(*v2.query_size(flat_inputs), self.longest_edge * ratio, self.shortest_edge * ratio)
        return {"size": list(size)}

    def transform(self, inpt, params: dict):
        """Resize; masks without interpolation."""
        return F.resize(inpt, params["size"], antialias=False)


class RandomCropOfSeveralClasses(v2.Transform):
    """Crop of at most `size` x `size` pixels, drawn again while one class fills more than `max_class_share` of it."""

    def __init__(self, size: int, max_class_share: float):
        super().__init__()
        self.size, self.max_class_share = size, max_class_share

    def make_params(self, flat_inputs: list) -> dict:
        """Draw the place of the crop."""
        mask = next(inpt for inpt in flat_inputs if isinstance(inpt, tv_tensors.Mask))
        for _ in range(CROP_ATTEMPTS):
            params = self.draw(*mask.shape[-2:])
            counts = F.crop(mask, **params).flatten().bincount(minlength=IGNORE_INDEX + 1)
            counts[IGNORE_INDEX] = 0
            if 0 < counts.max() < self.max_class_share * counts.sum():
                return params
        return self.draw(*mask.shape[-2:])

    def draw(self, height: int, width: int) -> dict:
        """A place, anywhere in the image."""
        rows, columns = min(self.size, height), min(self.size, width)
        top, left = (torch.randint(side + 1, ()).item() for side in (height - rows, width - columns))
        return {"top": top, "left": left, "height": rows, "width": columns}

    def transform(self, inpt, params: dict):
        """Cut it out."""
        return F.crop(inpt, **params)


class PadAtRightAndBottom(v2.Transform):
    """Fill up to `size` x `size` pixels: images, which are normalised, with 0 and masks with `IGNORE_INDEX`."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def transform(self, inpt, params: dict):
        """Pad."""
        fill = IGNORE_INDEX if isinstance(inpt, tv_tensors.Mask) else 0
        return tv_tensors.wrap(pad_to(inpt, self.size, self.size, fill), like=inpt)


def normalize() -> v2.Transform:
    """8 bits to ImageNet's zero mean and unit variance."""
    return v2.Compose(
        [
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
        ]
    )


def photometric_distortion() -> v2.Transform:
    """Brightness, contrast, saturation and hue, each varied in half of the images, over mmsegmentation's ranges.

    `v2.RandomPhotometricDistort` would also swap colour channels, which the recipe does not.
    """
    ranges = {"brightness": (0.875, 1.125), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-0.1, 0.1)}
    return v2.Compose([v2.RandomApply([v2.ColorJitter(**{name: limits})], p=0.5) for name, limits in ranges.items()])


def training_transform(arguments: AugmentationArguments) -> v2.Transform:
    """8-bit image and mask to a normalised crop with its labels."""
    return v2.Compose(
        [
            RandomRescale(arguments.longest_edge, arguments.shortest_edge, arguments.min_ratio, arguments.max_ratio),
            RandomCropOfSeveralClasses(arguments.crop_size, arguments.max_class_share),
            v2.RandomHorizontalFlip(),
            photometric_distortion() if arguments.photometric_distortion else v2.Identity(),
            normalize(),
            PadAtRightAndBottom(arguments.crop_size),
        ]
    )


class FitAndAlign(v2.Transform):
    """Make an image as large as fits both edges, then both sides a multiple of 32 pixels."""

    def __init__(self, longest_edge: float, shortest_edge: float):
        super().__init__()
        self.longest_edge, self.shortest_edge = longest_edge, shortest_edge

    def make_params(self, flat_inputs: list) -> dict:
        """The two sizes."""
        size = fit_size(*v2.query_size(flat_inputs), self.longest_edge, self.shortest_edge)
        return {"sizes": [list(size), list(round_up(*size))]}

    def transform(self, inpt, params: dict):
        """Resize twice, as the original does; masks without interpolation."""
        for size in params["sizes"]:
            inpt = F.resize(inpt, size, antialias=False)
        return inpt


def evaluation_transform(longest_edge: float, shortest_edge: float) -> v2.Transform:
    """8-bit image, and mask if there is one, to a normalised image as in mmsegmentation's whole-image test."""
    return v2.Compose([FitAndAlign(longest_edge, shortest_edge), normalize()])


class TransformedSamples(VariedExamples, Dataset):
    """`pixel_values` (3, height, width) and `labels` (height, width) of samples, transformed anew in each epoch.

    Args:
        samples: Images and masks.
        transform: 8-bit image and mask to pixel values and labels.
        seed: Seed of the run.
    """

    def __init__(self, samples: Dataset, transform: v2.Transform, seed: int):
        super().__init__(seed)
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        """Number of images."""
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One transformed sample."""
        image, labels = self.samples[index]
        with self.variation(index):
            image, mask = self.transform(to_tensor(image), tv_tensors.Mask(torch.from_numpy(labels)))
        return {"pixel_values": image.as_subclass(torch.Tensor), "labels": mask.as_subclass(torch.Tensor)}


def collate(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Batch of samples, padded at the right and bottom to the largest of them."""
    height, width = (max(sample["labels"].shape[axis] for sample in samples) for axis in (0, 1))
    fills = {"pixel_values": 0, "labels": IGNORE_INDEX}
    return {
        name: torch.stack([pad_to(sample[name], height, width, fill) for sample in samples])
        for name, fill in fills.items()
    }


def build_image_processor(arguments: AugmentationArguments) -> SegformerImageProcessor:
    """Image processor that is saved with the model: resizes to fit and normalises, and has the post-processing."""
    return SegformerImageProcessor(
        size={"shortest_edge": arguments.shortest_edge, "longest_edge": arguments.longest_edge},
        image_mean=list(IMAGENET_DEFAULT_MEAN),
        image_std=list(IMAGENET_DEFAULT_STD),
        do_convert_rgb=True,
    )
