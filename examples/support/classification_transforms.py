"""What is done to images in training, timm's augmentation as the original code used it, and in evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from torchvision import transforms
from transformers import BitImageProcessorPil

from .errors import InputError


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BICUBIC = 3
ORIGINAL_CROP = 224 / 256  # Share of the shorter side that the centre crop keeps.
LARGEST_SMALL_IMAGE = 32  # Up to this size, in pixels, the original code pads and crops instead of zooming in.
CROP_PADDING = 4  # pixels
CONVERSIONS = {1: "L", 3: "RGB"}

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Augmentation:
    """How training images are varied; the defaults are the original ImageNet recipe's.

    Attributes:
        auto_augment: timm's name of a policy such as RandAugment, or none.
        color_jitter: How much brightness, contrast and saturation change; only without a policy, as in timm.
        reprob: How probable random erasing is.
        remode: What erased pixels become: `pixel` for noise, `rand` for one colour, `const` for the mean.
        hflip: How probable mirroring is.
        scale: Smallest and largest share of the area that a random crop keeps.
        ratio: Smallest and largest width of a random crop, relative to its height.
        pad_and_crop: Whether images are padded and cropped at random instead of being cropped and zoomed in; unless
            given, this is so for sizes of up to 32 pixels.
    """

    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    color_jitter: float = 0.4
    reprob: float = 0.25
    remode: str = "pixel"
    hflip: float = 0.5
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad_and_crop: bool | None = None


UNVARIED = Augmentation(
    auto_augment=None,
    color_jitter=0.0,
    reprob=0.0,
    hflip=0.0,
    scale=(1.0, 1.0),
    ratio=(1.0, 1.0),
    pad_and_crop=False,
)
AUGMENTATIONS = {
    "imagenet": Augmentation(),
    # For fine-tuning, and for grey images, which the policy's colours and large shears do not suit.
    "light": Augmentation(auto_augment=None, color_jitter=0.0, reprob=0.0, scale=(0.5, 1.0)),
    "flip": replace(UNVARIED, hflip=0.5),
    "none": UNVARIED,
}


def build_image_processor(image_size: int, num_channels: int = 3) -> BitImageProcessorPil:
    """The original's preprocessing: shortest side to 256 / 224 of the size, bicubic, the centre, ImageNet's mean.

    Images of up to 32 pixels keep their borders, as in the original code.

    Args:
        image_size: Height and width in pixels.
        num_channels: 3, or 1 for grey images.
    """
    crop = 1.0 if image_size <= LARGEST_SMALL_IMAGE else ORIGINAL_CROP
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if num_channels == 3 else ((0.5,), (0.5,))
    return BitImageProcessorPil(
        do_convert_rgb=num_channels == 3,
        size={"shortest_edge": int(image_size / crop)},
        resample=BICUBIC,
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(mean),
        image_std=list(std),
    )


class TrainingTransform:
    """Image to pixel values (channels, size, size), varied at random.

    Args:
        augmentation: How.
        processor: The model's image processor, for mean and standard deviation.
        image_size: Height and width in pixels.
    """

    def __init__(self, augmentation: Augmentation, processor, image_size: int):
        self.num_channels = len(processor.image_mean)
        self.conversion = conversion_of(processor)
        repeats = 3 // self.num_channels
        self.transform = create_transform(
            image_size,
            is_training=True,
            scale=augmentation.scale,
            ratio=augmentation.ratio,
            hflip=augmentation.hflip,
            color_jitter=augmentation.color_jitter or None,
            auto_augment=augmentation.auto_augment,
            interpolation="bicubic",
            mean=tuple(processor.image_mean) * repeats,
            std=tuple(processor.image_std) * repeats,
            re_prob=augmentation.reprob,
            re_mode=augmentation.remode,
        )
        for step in self.transform.transforms:
            mend_posterize(step)
        small = image_size <= LARGEST_SMALL_IMAGE
        if small if augmentation.pad_and_crop is None else augmentation.pad_and_crop:
            self.transform.transforms[:1] = pad_and_crop(image_size)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Pixel values of an RGB image."""
        # timm's operations need RGB; equal channels stay equal, but for the noise of random erasing.
        return self.transform(image.convert(self.conversion).convert("RGB"))[: self.num_channels]


def mend_posterize(step: Callable) -> None:
    """Let timm's policies keep 0 bits of each colour, which they draw now and then and Pillow 13 refuses."""
    for operation in getattr(step, "ops", []):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize


def posterize(image: Image.Image, bits_to_keep: int, **options) -> Image.Image:
    """Timm's operation; without any bits the image is black, as it was with older versions of Pillow."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)


def pad_and_crop(image_size: int) -> list[Callable]:
    """Resize the shorter side to `image_size` pixels, then crop at random from the image with a black border."""
    return [
        transforms.Resize(image_size, transforms.InterpolationMode.BICUBIC),
        transforms.RandomCrop(image_size, padding=CROP_PADDING),
    ]


class EvaluationTransform:
    """Image to pixel values (channels, height, width) by the model's own image processor, at any size.

    Args:
        processor: The image processor; one with PIL's resizing does exactly what the original code did.
        image_size: Height and width in pixels; as the processor says unless given. What it resizes to before it
            crops grows in proportion.
    """

    def __init__(self, processor, image_size: int | None = None):
        self.processor, self.conversion = processor, conversion_of(processor)
        self.options = {} if image_size is None else sizes_at(processor, image_size)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Pixel values of an RGB image."""
        pixels = self.processor(image.convert(self.conversion), return_tensors="pt", **self.options)
        return pixels["pixel_values"][0]


def image_size_of(processor) -> int:
    """Height and width, in pixels, of what the processor gives."""
    size = dict(processor.crop_size) if getattr(processor, "do_center_crop", False) else dict(processor.size)
    return size.get("height") or size["shortest_edge"]


def sizes_at(processor, image_size: int) -> dict:
    """Options of the processor that make images of `image_size` x `image_size` pixels."""
    square = {"height": image_size, "width": image_size}
    if not getattr(processor, "do_center_crop", False):
        return {"size": square, "do_resize": True}
    shortest = processor.size.get("shortest_edge")
    if shortest is None:
        return {"size": square, "crop_size": square, "do_resize": True}
    # As `int(256 / 224 * size)` in the original code.
    return {
        "size": {"shortest_edge": int(shortest / image_size_of(processor) * image_size)},
        "crop_size": square,
        "do_resize": True,
    }


def conversion_of(processor) -> str:
    """Mode of PIL's images that the processor takes, by its number of channels.

    Raises:
        InputError: There are neither one nor three.
    """
    channels = len(processor.image_mean)
    if channels not in CONVERSIONS:
        raise InputError(
            f"the image processor's image_mean is {processor.image_mean}, but images have one or three channels: give "
            "a model for such images"
        )
    return CONVERSIONS[channels]
