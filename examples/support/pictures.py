"""Which picture a script writes for which image."""

from pathlib import Path

from .errors import InputError
from .image_files import list_images


def plan(inputs: list[Path], output: Path) -> dict[Path, Path]:
    """Picture to write for each image; the images of a folder keep their places below it.

    Raises:
        InputError: There is no such image, or two would have the same picture.
    """
    names = {}
    for given in inputs:
        if given.is_dir():
            names |= {image: image.relative_to(given).with_suffix(".png") for image in list_images(given)}
        elif given.is_file():
            names[given] = Path(given.stem + ".png")
        else:
            raise InputError(f"{given} is neither a file nor a folder: give the path of an image")
    pictures = {}
    for image, name in names.items():
        if name in pictures:
            raise InputError(
                f"{image} and {pictures[name]} would both be drawn as {output / name}, but each needs a picture of "
                "its own: rename one, or give each another --output_dir"
            )
        pictures[name] = image
    return {image: output / name for name, image in pictures.items()}
