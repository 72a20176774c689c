"""Images with masks from folders or from anything that `datasets` loads, checked one by one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image
from torch.utils.data import Dataset, Subset

from .data_sources import check_choice, load_splits, read_lines, to_file
from .errors import InputError, first_few, say
from .image_files import ImageFile, OpenImage, list_images, open_as_rgb, open_mask, open_rgb
from .reading import read_all


IGNORE_INDEX = 255


@dataclass
class SegmentationDataArguments:
    """Which images with masks to take, and what their labels mean."""

    validation_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of held-out images: masks of the same names are in --validation_masks_dir; without "
                          "that flag, the images are in its folder `images` and the masks in its folder `masks`."},
    )  # fmt: skip
    validation_masks_dir: str | None = field(default=None, metadata={"help": "Folder of the held-out images' masks."})
    dataset_name: str | None = field(
        default=None,
        metadata={"help": "Instead of folders: what `datasets.load_dataset` takes, or a folder of `save_to_disk`."},
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    validation_split: str = field(default="validation", metadata={"help": "Its split of held-out images."})
    image_column_name: str = field(default="image", metadata={"help": "Its column of images."})
    label_column_name: str = field(default="label", metadata={"help": "Its column of masks."})
    class_names: str | None = field(
        default=None,
        metadata={"help": "Text file with the name of a class on each line, in the order of the labels. Unless given, "
                          "`classes.txt` in the folder of the images, or the data set's own names."},
    )  # fmt: skip
    num_labels: int | None = field(default=None, metadata={"help": "Number of classes, where they have no names."})
    reduce_labels: bool = field(
        default=False,
        metadata={"help": "Label 0 is no class and is ignored, the others count from 1, as in ADE20K."},
    )
    convert_rgb: bool = field(
        default=False, metadata={"help": "Convert grey, palette, CMYK and transparent images to RGB."}
    )
    skip_broken: bool = field(
        default=False, metadata={"help": "Leave out images and masks that cannot be used, and say which."}
    )


@dataclass
class SegmentationTrainingDataArguments(SegmentationDataArguments):
    """Which images with masks to train on and to hold out."""

    train_dir: str | None = field(
        default=None,
        metadata={"help": "Folder of the training images; as --validation_dir. Without any data, shapes are drawn."},
    )
    train_masks_dir: str | None = field(default=None, metadata={"help": "Folder of the training images' masks."})
    train_split: str = field(default="train", metadata={"help": "Split of --dataset_name to train on."})


class SampleFiles(NamedTuple):
    """An image and its mask, not read yet, with what errors call them."""

    image_name: str
    image: ImageFile
    mask_name: str
    mask: ImageFile | np.ndarray


class DatasetFiles(Sequence):
    """The rows of a `datasets.Dataset` as `SampleFiles`."""

    def __init__(self, rows: datasets.Dataset, split: str, image_column: str, label_column: str):
        self.split, self.image_column, self.label_column = split, image_column, label_column
        for column in (image_column, label_column):
            if isinstance(rows.features[column], datasets.Image):
                rows = rows.cast_column(column, datasets.Image(decode=False))
        self.rows = rows.select_columns([image_column, label_column])

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> SampleFiles:
        """One row; it is named after its file where there is one, and after its index."""
        row = self.rows[index]
        parts = []
        for column in (self.image_column, self.label_column):
            value = row[column]
            path = value.get("path") if isinstance(value, dict) else None
            parts.append(f"`{column}` of {self.split}[{index}]" + (f" ({path})" if path else ""))
            parts.append(to_file(value))
        return SampleFiles(*parts)


class SegmentationSamples(Dataset):
    """RGB images with the class of each pixel (height, width), int64, `IGNORE_INDEX` where there is none.

    Reading one raises an `InputError` that names the file and what is wrong with it.

    Args:
        files: Where images and masks are.
        num_labels: Number of classes.
        reduce_labels: Whether label 0 is no class and the others count from 1.
        open_image: How images are opened: `open_rgb` or `open_as_rgb`.
    """

    def __init__(self, files: Sequence[SampleFiles], num_labels: int, reduce_labels: bool, open_image: OpenImage):
        self.files, self.num_labels = files, num_labels
        self.reduce_labels, self.open_image = reduce_labels, open_image

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, np.ndarray]:
        """Image and labels, checked."""
        sample = self.files[index]
        image = self.open_image(sample.image_name, sample.image)
        mask = sample.mask if isinstance(sample.mask, np.ndarray) else open_mask(sample.mask_name, sample.mask)
        check_size(sample, image, mask)
        labels = reduce(mask) if self.reduce_labels else mask
        check_labels(sample.mask_name, labels, self.num_labels, self.reduce_labels)
        return image, labels


def reduce(mask: np.ndarray) -> np.ndarray:
    """Labels that count from 1 to labels that count from 0; 0 becomes `IGNORE_INDEX`, which stays."""
    return np.where((mask == 0) | (mask == IGNORE_INDEX), IGNORE_INDEX, mask - 1)


def check_size(sample: SampleFiles, image: Image.Image, mask: np.ndarray) -> None:
    """Raise an `InputError` unless there is one label for each pixel."""
    if mask.shape != (image.height, image.width):
        size = " x ".join(str(side) for side in reversed(mask.shape))
        raise InputError(
            f"{sample.mask_name} is {size} pixels, but its image {sample.image_name} is {image.width} x "
            f"{image.height}: a mask must have the size of its image; resize it without interpolation"
        )


def check_labels(name: str, labels: np.ndarray, num_labels: int, reduced: bool) -> None:
    """Raise an `InputError` unless every label is a class or `IGNORE_INDEX`."""
    wrong = labels[((labels < 0) | (labels >= num_labels)) & (labels != IGNORE_INDEX)]
    if len(wrong) == 0:
        return
    offset = 1 if reduced else 0
    hint = "" if reduced else ", or --reduce_labels if labels count from 1"
    raise InputError(
        f"{name} has the label {wrong[0] + offset}, but labels must be {offset} to {num_labels - 1 + offset}, as "
        f"there are {num_labels} classes, or {IGNORE_INDEX} where there is none: mend the mask, give all classes with "
        f"--class_names or --num_labels{hint}"
    )


def validation_samples(arguments: SegmentationDataArguments, names: list[str]) -> Dataset:
    """The held-out images that can be used."""
    if arguments.dataset_name:
        files = dataset_files(arguments, arguments.validation_split)
    else:
        files = folder_files(arguments.validation_dir, arguments.validation_masks_dir, "--validation_dir")
    return usable_samples(files, arguments, names, "validation")


def training_samples(arguments: SegmentationTrainingDataArguments, names: list[str]) -> Dataset:
    """The training images that can be used."""
    if arguments.dataset_name:
        files = dataset_files(arguments, arguments.train_split)
    else:
        files = folder_files(arguments.train_dir, arguments.train_masks_dir, "--train_dir")
    return usable_samples(files, arguments, names, "training")


def usable_samples(
    files: Sequence[SampleFiles], arguments: SegmentationDataArguments, names: list[str], purpose: str
) -> Dataset:
    """Read every file once and leave out the broken ones.

    Raises:
        InputError: There are broken files and `arguments` do not say to skip them, or nothing is left.
    """
    open_image = open_as_rgb if arguments.convert_rgb else open_rgb
    samples = SegmentationSamples(files, len(names), arguments.reduce_labels, open_image)
    problems = find_problems(samples, f"Checking {purpose} images")
    if problems and not arguments.skip_broken:
        raise InputError(summarize(problems, len(samples)))
    for problem in problems.values():
        say(f"skipped: {problem}")
    if problems:
        say(f"{len(problems)} of {len(samples)} {purpose} images are left out")
    usable = [index for index in range(len(samples)) if index not in problems]
    if not usable:
        raise InputError(f"none of the {len(samples)} {purpose} images can be used: see what is wrong with them above")
    return Subset(samples, usable) if problems else samples


def find_problems(samples: SegmentationSamples, description: str) -> dict[int, str]:
    """What is wrong with which sample."""

    def problem_of(index: int) -> str | None:
        try:
            samples[index]
        except InputError as error:
            return str(error)
        return None

    found = read_all(problem_of, range(len(samples)), description)
    return {index: problem for index, problem in enumerate(found) if problem}


def summarize(problems: dict[int, str], total: int) -> str:
    """All problems in one line: the first one whole, of the others what they are about."""
    first, *others = problems.values()
    if not others:
        return f"{first} (or go on without it: --skip_broken)"
    about = first_few([other.split(" ", 1)[0] if other[0] != "`" else " ".join(other.split()[:3]) for other in others])
    return f"{first} ({len(others)} more of {total} are broken: {about}; go on without them: --skip_broken)"


def folder_files(images_dir: str | None, masks_dir: str | None, flag: str) -> list[SampleFiles]:
    """Images of a folder with the masks of the same names, below it too.

    Raises:
        InputError: There is no folder, no image or a mask is missing.
    """
    if images_dir is None:
        raise InputError(f"{flag} is not given, but images to read are needed: give {flag} or --dataset_name")
    images_folder = Path(images_dir) if masks_dir else Path(images_dir) / "images"
    masks_folder = Path(masks_dir) if masks_dir else Path(images_dir) / "masks"
    masks = {path.relative_to(masks_folder).with_suffix(""): path for path in list_images(masks_folder)}
    files = []
    for path in list_images(images_folder):
        stem = path.relative_to(images_folder).with_suffix("")
        if stem not in masks:
            raise InputError(
                f"{path} has no mask, but each image needs one of its name: put it at {masks_folder / stem}.png"
            )
        files.append(SampleFiles(str(path), path, str(masks[stem]), masks[stem]))
    return files


def dataset_files(arguments: SegmentationDataArguments, split: str) -> DatasetFiles:
    """Rows of one split of a data set.

    Raises:
        InputError: There is no such split or column.
    """
    splits = load_splits(arguments.dataset_name, arguments.dataset_config_name)
    check_choice("split", split, splits)
    rows = splits[split]
    for flag in ("image_column_name", "label_column_name"):
        check_choice(flag, getattr(arguments, flag), rows.column_names)
    if not isinstance(rows.features[arguments.image_column_name], datasets.Image):
        raise InputError(f"--image_column_name is {arguments.image_column_name}, which holds no images: give another")
    return DatasetFiles(rows, split, arguments.image_column_name, arguments.label_column_name)


def read_class_names(arguments: SegmentationDataArguments) -> list[str]:
    """Names of the classes: from a file, the data set, or numbered.

    Raises:
        InputError: There are none, too few or many, or another number than the user says.
    """
    names = next((names for names in name_sources(arguments) if names), None)
    if names is None:
        raise InputError(
            "the classes have no names, but their number must be known: give a file of names as --class_names, or "
            "--num_labels"
        )
    if arguments.num_labels not in (None, len(names)):
        raise InputError(
            f"--num_labels is {arguments.num_labels}, but there are {len(names)} names of classes: leave it out"
        )
    if not 2 <= len(names) <= IGNORE_INDEX:
        raise InputError(
            f"there are {len(names)} classes ({names[0]}, …), but a segmentor tells 2 to {IGNORE_INDEX} apart: name "
            "the background too"
        )
    return names


def name_sources(arguments: SegmentationDataArguments) -> Iterable[list[str]]:
    """Names from each place where there may be some, the most explicit first."""
    if arguments.class_names:
        yield read_lines(Path(arguments.class_names))
    for folder in (getattr(arguments, "train_dir", None), arguments.validation_dir):
        if folder and not arguments.dataset_name and (Path(folder) / "classes.txt").exists():
            yield read_lines(Path(folder) / "classes.txt")
    if arguments.dataset_name:
        rows = next(iter(load_splits(arguments.dataset_name, arguments.dataset_config_name).values()))
        yield names_of_feature(rows.features.get(arguments.label_column_name))
    yield [f"LABEL_{index}" for index in range(arguments.num_labels or 0)]


def names_of_feature(feature) -> list[str]:
    """Names in a column of masks that are lists of `ClassLabel`; none for images, which have no names."""
    while isinstance(feature, datasets.List):
        feature = feature.feature
    return list(getattr(feature, "names", None) or [])
