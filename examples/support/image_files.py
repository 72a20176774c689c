"""Opening images and masks, with errors that name the file."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .errors import InputError


IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
CHANNELS = {"1": 1, "L": 1, "P": 1, "I": 1, "F": 1, "LA": 2, "PA": 2, "RGBA": 4, "CMYK": 4, "RGBa": 4, "La": 2}
WIDE_MODES = ("I", "F")  # and those that begin with I;16: more than 8 bits a channel.

ImageFile = Path | BytesIO
OpenImage = Callable[[str, ImageFile], Image.Image]


def decode(name: str, file: ImageFile) -> Image.Image:
    """Read all of an image, upright.

    Args:
        name: What errors call it.
        file: Path or content.

    Raises:
        InputError: It cannot be decoded.
    """
    try:
        image = Image.open(file)
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # A broken file makes PIL's decoders raise nearly anything.
        reason = str(error) if isinstance(file, Path) else type(error).__name__
        raise InputError(f"{name} cannot be read as an image ({reason}): mend it or leave it out") from error


def open_rgb(name: str, file: ImageFile) -> Image.Image:
    """Read an image that must be RGB.

    Raises:
        InputError: It cannot be decoded or has other channels.
    """
    image = decode(name, file)
    if image.mode == "RGB":
        return image
    raise InputError(
        f"{name} is of mode {image.mode} ({channels_of(image)}), but the model takes three channels (RGB): "
        "give --convert_rgb to convert such images"
    )


def open_as_rgb(name: str, file: ImageFile) -> Image.Image:
    """Read an image and convert it to RGB: grey is repeated, palettes are looked up, transparency is dropped.

    Raises:
        InputError: It cannot be decoded or has more than 8 bits a channel.
    """
    image = decode(name, file)
    if image.mode in WIDE_MODES or image.mode.startswith("I;"):
        raise InputError(
            f"{name} is of mode {image.mode}, but only images with 8 bits a channel can be converted to RGB: "
            "scale its values to 0 to 255 and save it anew"
        )
    if image.mode == "P":  # Its colours may be transparent, which RGBA alone can say.
        image = image.convert("RGBA")
    return image.convert("RGB")


def channels_of(image: Image.Image) -> str:
    """Number of channels in words."""
    count = CHANNELS.get(image.mode, len(image.getbands()))
    return f"{count} channel{'s' if count > 1 else ''}"


def open_mask(name: str, file: ImageFile) -> np.ndarray:
    """Read a mask: the class of each pixel (height, width), int64.

    Raises:
        InputError: It cannot be decoded or does not hold one number per pixel.
    """
    mask = decode(name, file)
    if len(mask.getbands()) > 1 or mask.mode == "F":
        raise InputError(
            f"{name} is of mode {mask.mode} ({channels_of(mask)}), but a mask holds the index of one class per pixel: "
            "save it as a grey or palette image"
        )
    return np.asarray(mask).astype(np.int64)


def list_images(folder: Path) -> list[Path]:
    """All image files in `folder` and below, by name.

    Raises:
        InputError: There is no such folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder, but images are looked for there: give the path of a folder")
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder} holds no images: their names must end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    return files
