"""Images with boxes and masks from COCO-format folders or from anything that `datasets` loads, checked one by one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets
from PIL import Image
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .coco_annotations import Category, check_annotation, objects_of, order_categories
from .coco_files import AnnotatedImage, names_of_categories, read_categories, read_images, read_json, read_rows
from .data_sources import check_choice, load_splits, read_lines
from .errors import InputError, first_few
from .image_files import OpenImage, open_as_rgb, open_rgb
from .reading import read_all


@dataclass
class DetectionDataArguments:
    """Which images with annotations to take."""

    validation_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of held-out images: the annotations are in --validation_annotations; without that "
                          "flag, they are in its file annotations.json and the images in its folder `images`."},
    )  # fmt: skip
    validation_annotations: str | None = field(
        default=None, metadata={"help": "COCO file with the held-out images' annotations."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Instead of folders: what `datasets.load_dataset` takes, or a folder of `save_to_disk`."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    validation_split: str = field(default="validation", metadata={"help": "Its split of held-out images."})
    image_column_name: str = field(default="image", metadata={"help": "Its column of images."})
    objects_column_name: str = field(
        default="objects",
        metadata={"help": "Its column of objects: `bbox` (left, top, width, height in pixels), `category` from 0, and "
                          "maybe `segmentation`, `iscrowd`, `area` and `id`."},
    )  # fmt: skip
    class_names: str | None = field(
        default=None,
        metadata={"help": "Text file with the name of a category of the data set on each line, where it has none."},
    )
    convert_rgb: bool = field(
        default=False, metadata={"help": "Convert grey, palette, CMYK and transparent images to RGB."}
    )
    skip_broken: bool = field(
        default=False, metadata={"help": "Leave out images and annotations that cannot be used, and say which."}
    )


@dataclass
class DetectionTrainingDataArguments(DetectionDataArguments):
    """Which images with annotations to train on and to hold out."""

    train_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the training images; as --validation_dir. Without any data, shapes are drawn."},
    )
    train_annotations: str | None = field(
        default=None, metadata={"help": "COCO file with the training images' annotations."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of --dataset_name to train on."})


# Raises an `InputError` unless the model takes the image of this name and of this height and width.
CheckSize = Callable[[str, tuple[int, int]], None]


class Source(NamedTuple):
    """Images that are not checked yet, and their categories by label."""

    name: str
    images: Sequence[AnnotatedImage]
    categories: list[Category]


class CheckedImage(NamedTuple):
    """An image that can be opened, its size (height, width), and annotations as `check_annotation` gives them."""

    image: AnnotatedImage
    size: tuple[int, int]
    annotations: list[dict]


class Problem(NamedTuple):
    """What is broken, and the error."""

    about: str
    message: str


class DetectionSamples(Dataset):
    """RGB images and their checked annotations.

    Args:
        images: What can be used.
        open_image: How images are opened: `open_rgb` or `open_as_rgb`.
    """

    def __init__(self, images: Sequence[CheckedImage], open_image: OpenImage):
        self.images, self.open_image = images, open_image

    def __len__(self) -> int:
        """Number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, list[dict]]:
        """Image and annotations."""
        checked = self.images[index]
        return self.open_image(checked.image.name, checked.image.open()), checked.annotations


def validation_source(arguments: DetectionDataArguments) -> Source:
    """The held-out images."""
    if arguments.dataset_name:
        return dataset_source(arguments, arguments.validation_split)
    return folder_source(arguments.validation_dir, arguments.validation_annotations, "--validation_dir")


def training_source(arguments: DetectionTrainingDataArguments) -> Source:
    """The training images."""
    if arguments.dataset_name:
        return dataset_source(arguments, arguments.train_split)
    return folder_source(arguments.train_dir, arguments.train_annotations, "--train_dir")


def folder_source(images_dir: str | None, annotations: str | None, flag: str) -> Source:
    """Images of a folder with their COCO file.

    Raises:
        InputError: There is no folder, or the file is wrong.
    """
    if images_dir is None:
        raise InputError(f"{flag} is not given, but images to read are needed: give {flag} or --dataset_name")
    path = Path(annotations) if annotations else Path(images_dir) / "annotations.json"
    content = read_json(path)
    images = read_images(content, path, Path(images_dir) if annotations else Path(images_dir) / "images")
    return Source(str(path), images, order_categories(read_categories(content, path), str(path)))


def dataset_source(arguments: DetectionDataArguments, split: str) -> Source:
    """One split of a data set.

    Raises:
        InputError: There is no such split or column, or the categories have no names.
    """
    splits = load_splits(arguments.dataset_name, arguments.dataset_config_name)
    check_choice("split", split, splits)
    rows, columns = splits[split], (arguments.image_column_name, arguments.objects_column_name)
    for flag, column in zip(("image_column_name", "objects_column_name"), columns, strict=True):
        check_choice(flag, column, rows.column_names)
    if not isinstance(rows.features[columns[0]], datasets.Image):
        raise InputError(f"--image_column_name is {columns[0]}, which holds no images: give another")
    names = read_lines(Path(arguments.class_names)) if arguments.class_names else names_of_categories(rows, columns[1])
    if not names:
        raise InputError("the data set's categories have no names: give a file of names as --class_names")
    name = f"{arguments.dataset_name}, {split}"
    categories = order_categories([Category(*pair) for pair in enumerate(names)], name)
    return Source(name, list(read_rows(rows, split, *columns)), categories)


def usable_samples(
    source: Source, arguments: DetectionDataArguments, with_masks: bool, check_size: CheckSize, purpose: str
) -> DetectionSamples:
    """Read every image and annotation once, and leave out the broken ones.

    Args:
        source: What to read.
        arguments: What to do with broken ones, and with images that are not RGB.
        with_masks: Whether annotations need masks.
        check_size: Raises an `InputError` for an image of a size that the model does not take.
        purpose: What the images are for, in messages.

    Raises:
        InputError: Some are broken and `arguments` do not say to skip them, or nothing is left.
    """
    open_image = open_as_rgb if arguments.convert_rgb else open_rgb
    check = partial(
        check_image,
        open_image=open_image,
        check_size=check_size,
        categories=source.categories,
        with_masks=with_masks,
    )
    checked, problems = check_images(source.images, check, f"Checking {purpose} images")
    if problems and not arguments.skip_broken:
        raise InputError(summarize(problems))
    for problem in problems:
        tqdm.write(f"skipped: {problem.message}")
    if problems:
        tqdm.write(f"{len(problems)} {purpose} images or annotations are left out")
    if not any(objects_of(image.annotations) for image in checked):
        raise InputError(
            f"{source.name} has no objects in its {len(source.images)} {purpose} images, but there must be some: add "
            "annotations"
        )
    return DetectionSamples(checked, open_image)


def check_images(
    images: Sequence[AnnotatedImage], check: Callable[[AnnotatedImage], tuple], description: str
) -> tuple[list[CheckedImage], list[Problem]]:
    """What can be used, and what is wrong with the rest."""
    results = read_all(check, images, description)
    return [image for image, _ in results if image], [problem for _, problems in results for problem in problems]


def check_image(
    image: AnnotatedImage,
    open_image: OpenImage,
    check_size: CheckSize,
    categories: Sequence[Category],
    with_masks: bool,
) -> tuple[CheckedImage | None, list[Problem]]:
    """One image without its broken annotations, none if it cannot be used itself, and what is wrong."""
    try:
        size = open_image(image.name, image.open()).size[::-1]
        check_annotated_size(image, size)
        check_size(image.name, size)
    except InputError as error:
        return None, [Problem(image.name, str(error))]
    annotations, problems = [], []
    for name, annotation in image.annotations:
        try:
            annotations.append(check_annotation(annotation, size, categories, with_masks))
        except InputError as error:
            problems.append(Problem(f"{image.name} {name}", f"{image.name}, {name}: {error}"))
    # What the file says is large, and no longer needed.
    return CheckedImage(image._replace(annotations=()), size, annotations), problems


def check_annotated_size(image: AnnotatedImage, size: tuple[int, int]) -> None:
    """Raise an `InputError` unless the annotations are for an image of its size (height, width)."""
    if image.size not in (None, size):
        raise InputError(
            f"{image.name} is {size[1]} x {size[0]} pixels, but its annotations are for {image.size[1]} x "
            f"{image.size[0]}: annotate the image as it is"
        )


def summarize(problems: Sequence[Problem]) -> str:
    """All problems in one line: the first one whole, of the others what they are about."""
    first, *others = problems
    if not others:
        return f"{first.message} (or go on without it: --skip_broken)"
    about = first_few([other.about for other in others])
    return f"{first.message} ({len(others)} more are broken: {about}; go on without them: --skip_broken)"
