"""Images of classes from anything: folders, parquet files, WebDataset shards, IDX files, or what `datasets` loads."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import torch
from torch.utils.data import Subset

from .data_sources import check_choice, load, load_splits, read_lines
from .errors import InputError, say
from .idx_files import FASHION_MNIST_FOLDER, FASHION_MNIST_NAMES, IdxImages, find_idx_files
from .labelled_images import LabelledImage, RowReader, StreamedImages, TableImages
from .reading import read_all


SPLIT_SEED = 0  # The same images are held out in each run, and by each script.
HELD_OUT = ("validation", "valid", "val", "test")
LABEL_COLUMNS = ("label", "labels", "cls", "fine_label", "class")
BUILDERS = {"*.parquet": "parquet", "*.tar": "webdataset"}
HUB_NAMES = {"fashion_mnist": "zalando-datasets/fashion_mnist"}

Images = Sequence[LabelledImage] | StreamedImages


@dataclass
class ClassificationDataArguments:
    """Which images to take, and what their classes are."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "What `datasets.load_dataset` takes, or a folder of `save_to_disk`. `fashion_mnist` is read "
                          "from --train_dir or Debian's package dataset-fashion-mnist, where they are there."},
    )  # fmt: skip
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of that data set."})
    train_split: str = field(default="train", metadata={"help": "Split of --dataset_name to train on."})
    validation_split: str | None = field(
        default=None,
        metadata={"help": "Its held-out split; unless given, the first there is of validation, valid, val and test."},
    )
    train_dir: str | None = field(
        default=None,
        metadata={"help": "Training images: a folder with a folder for each class, one of *.parquet files, of *.tar "
                          "shards (WebDataset), or of MNIST's IDX files; or a pattern of files such as "
                          "'shards/train-*.tar'."},
    )  # fmt: skip
    validation_dir: str | None = field(default=None, metadata={"help": "Held-out images; as --train_dir."})
    train_val_split: float = field(
        default=0.15, metadata={"help": "Share of the training images to hold out where no others are."}
    )
    image_column_name: str | None = field(
        default=None, metadata={"help": "Column of images; unless given, the only one that holds images."}
    )
    label_column_name: str | None = field(
        default=None,
        metadata={"help": f"Column of labels; unless given, the first there is of {', '.join(LABEL_COLUMNS)}."},
    )
    class_names: str | None = field(
        default=None,
        metadata={"help": "Text file with the name of a class on each line, in the order of the labels, where the "
                          "data set has none."},
    )  # fmt: skip
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Number of training images to take, drawn at random from a table."}
    )
    max_eval_samples: int | None = field(default=None, metadata={"help": "Number of held-out images to take."})
    streaming: bool = field(
        default=False, metadata={"help": "Read images as they are needed, for data sets that do not fit on a disk."}
    )
    shuffle_buffer_size: int = field(
        default=10_000, metadata={"help": "With --streaming: number of images from which the next one is drawn."}
    )
    skip_broken_images: bool = field(
        default=False,
        metadata={"help": "Leave out images that cannot be used, and say which; tables are read once to find them."},
    )

    def __post_init__(self):
        """Refuse values that no data set can have."""
        if not 0 < self.train_val_split < 1:
            raise ValueError(f"--train_val_split is {self.train_val_split}, but a share lies between 0 and 1")
        for name in ("max_train_samples", "max_eval_samples", "shuffle_buffer_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, but it must be at least 1")


class LabelledSplits(NamedTuple):
    """Training images, held-out images, where they are given, and the names of the classes."""

    train: Images | None
    validation: Images | None
    names: list[str]


def load_images(data: ClassificationDataArguments) -> LabelledSplits:
    """The images that `data` name.

    Where nothing is held out, a share of the training images is, always the same.

    Raises:
        InputError: They cannot be found or read, or their classes are not known.
    """
    train, validation, names = load_idx(data) or load_rows(data)
    if validation is None:
        train, validation = hold_out(train, data)
    train = prepare(train, data.max_train_samples, data.skip_broken_images, "training")
    validation = prepare(validation, data.max_eval_samples, data.skip_broken_images, "held-out")
    return LabelledSplits(train, validation, names)


def load_idx(data: ClassificationDataArguments) -> LabelledSplits | None:
    """Images of IDX files, or none where there are no such files."""
    is_fashion = data.dataset_name == "fashion_mnist"
    if data.dataset_name and not is_fashion:
        return None
    default = FASHION_MNIST_FOLDER if is_fashion else None
    folders = {
        "train": data.train_dir or data.validation_dir or default,
        "validation": data.validation_dir or data.train_dir or default,
    }
    files = {split: folder and find_idx_files(Path(folder), split) for split, folder in folders.items()}
    must_be_there = is_fashion and (data.train_dir or data.validation_dir)
    if not any(files.values()) and not must_be_there:
        return None
    for split in folders:
        folder = getattr(data, f"{split}_dir")
        if folder and not files[split]:
            raise InputError(f"--{split}_dir is {folder}, which does not hold MNIST's two IDX files of this split")
    train, validation = (IdxImages(*files[split]) if files[split] else None for split in folders)
    count = 1 + max(int(images.labels.max()) for images in (train, validation) if images)
    names = read_lines(Path(data.class_names)) if data.class_names else FASHION_MNIST_NAMES if is_fashion else None
    return LabelledSplits(train, validation, names or [str(label) for label in range(count)])


def load_rows(data: ClassificationDataArguments) -> LabelledSplits:
    """Images of what `datasets` loads."""
    splits = load_tables(data)
    image_column, label_column = choose_columns(next(iter(splits.values())), data)
    names = class_names_of(splits, label_column, data)
    images = {}
    for split, rows in splits.items():
        rows = rows.cast_column(image_column, datasets.Image(decode=False)).select_columns(
            [image_column, label_column]
        )
        kind = StreamedImages if data.streaming else TableImages
        images[split] = kind(rows, RowReader(split, image_column, label_column, names))
    return LabelledSplits(images.get("train"), images.get("validation"), names)


def load_tables(data: ClassificationDataArguments) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """Tables or streams of rows: `train`, `validation`, or both."""
    if data.dataset_name:
        name = HUB_NAMES.get(data.dataset_name, data.dataset_name)
        splits = load_splits(name, data.dataset_config_name, only_split=data.train_split, streaming=data.streaming)
        return choose_splits(splits, data)
    folders = {"train": data.train_dir, "validation": data.validation_dir}
    folders = {split: folder for split, folder in folders.items() if folder}
    if not folders:
        raise InputError("no images are given, but some are needed: give --dataset_name, --train_dir or both folders")
    kinds = {split: find_files(folder, f"--{split}_dir") for split, folder in folders.items()}
    builders = {builder for builder, _ in kinds.values()}
    if len(builders) > 1:
        raise InputError(
            f"--train_dir is {data.train_dir} and --validation_dir {data.validation_dir}, but both must be of one "
            "kind: folders of classes, parquet files, or tar shards"
        )
    files = {split: pattern for split, (_, pattern) in kinds.items()}
    options = {"drop_labels": False} if builders == {"imagefolder"} else {}
    return load(" and ".join(folders.values()), builders.pop(), data_files=files, streaming=data.streaming, **options)


def find_files(folder: str, flag: str) -> tuple[str, str | list[str]]:
    """Builder of `datasets`, and a pattern or patterns of files for it.

    Raises:
        InputError: There are none.
    """
    if Path(folder).is_dir():
        for pattern, builder in BUILDERS.items():
            files = sorted(escaped(path) for path in Path(folder).glob(pattern))
            if files:
                return builder, files
        return "imagefolder", f"{escaped(folder)}/**"
    files = sorted(escaped(path) for path in glob.glob(folder))
    builder = next((builder for pattern, builder in BUILDERS.items() if folder.endswith(pattern[1:])), None)
    if not files or not builder:
        raise InputError(
            f"{flag} is {folder}, which is neither a folder nor a pattern of *.parquet or *.tar files: give one that "
            "is there"
        )
    return builder, files


def escaped(path: Path | str) -> str:
    """The whole path, without a meaning as a pattern."""
    return glob.escape(str(Path(path).absolute()))


def choose_splits(splits: dict, data: ClassificationDataArguments) -> dict:
    """Those to train on and to hold out, named `train` and `validation`."""
    check_choice("train_split", data.train_split, splits)
    held_out = data.validation_split or next((name for name in HELD_OUT if name in splits), None)
    if held_out:
        check_choice("validation_split", held_out, splits)
    chosen = {"train": splits[data.train_split], "validation": splits.get(held_out)}
    return {split: rows for split, rows in chosen.items() if rows is not None}


def choose_columns(rows: datasets.Dataset | datasets.IterableDataset, data: ClassificationDataArguments) -> tuple:
    """Names of the columns of images and labels.

    Raises:
        InputError: There are none, or the user must choose.
    """
    if rows.features is None:
        rows = rows._resolve_features()
    pictures = [name for name, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    labels = [name for name in LABEL_COLUMNS if name in rows.features]
    image = data.image_column_name or (pictures[0] if len(pictures) == 1 else "image")
    label = data.label_column_name or (labels[0] if labels else "label")
    check_choice("image_column_name", image, rows.features)
    check_choice("label_column_name", label, rows.features)
    if image not in pictures:
        raise InputError(f"--image_column_name is {image}, which holds no images: give another")
    return image, label


def class_names_of(splits: dict, column: str, data: ClassificationDataArguments) -> list[str]:
    """Names of the classes: from a file, the column, or the labels themselves.

    Raises:
        InputError: A stream has none.
    """
    if data.class_names:
        return read_lines(Path(data.class_names))
    feature = next(iter(splits.values())).features
    feature = feature and feature[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    if data.streaming:
        raise InputError(
            f"the labels in column {column} have no names, which a stream must know beforehand: give a file of names "
            "as --class_names"
        )
    kind = feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__
    if "string" not in kind and "int" not in kind:
        raise InputError(
            f"--label_column_name is {column}, but labels are numbers or names, not of type {kind}: give another"
        )
    values = {value for rows in splits.values() for value in rows.unique(column) if value is not None}
    if "string" in kind:
        return sorted(values)
    return [str(label) for label in range(max(values) + 1)]


def hold_out(train: Images, data: ClassificationDataArguments) -> tuple[Images, Images]:
    """Training images without, and only with, those held out.

    Raises:
        InputError: They are a stream, or too few.
    """
    if isinstance(train, StreamedImages):
        raise InputError(
            "no images are held out, and a stream cannot be divided: give --validation_dir or --validation_split"
        )
    order = shuffled(len(train))
    count = round(data.train_val_split * len(train))
    if not 0 < count < len(train):
        raise InputError(
            f"--train_val_split is {data.train_val_split}, which leaves nothing to train on or to hold out of "
            f"{len(train)} images: give another, or --validation_dir"
        )
    return Subset(train, order[count:]), Subset(train, order[:count])


def prepare(images: Images | None, max_samples: int | None, skip_broken: bool, purpose: str) -> Images | None:
    """As many images as asked for, of a table at random, and of a table only those that can be used."""
    if images is None or isinstance(images, StreamedImages):
        return StreamedImages(images.rows.take(max_samples), images.reader) if images and max_samples else images
    if max_samples and max_samples < len(images):
        images = Subset(images, sorted(shuffled(len(images))[:max_samples]))
    return usable(images, purpose) if skip_broken else images


def shuffled(count: int) -> list[int]:
    """Indices below `count`, in an order that is always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()


def usable(images: Sequence[LabelledImage], purpose: str) -> Sequence[LabelledImage]:
    """Read every image once, say which are broken, and leave them out.

    Raises:
        InputError: Nothing is left.
    """

    def problem_of(index: int) -> str | None:
        try:
            images[index].open()
        except InputError as error:
            return str(error)
        return None

    problems = read_all(problem_of, range(len(images)), f"Checking {purpose} images")
    for problem in filter(None, problems):
        say(f"skipped: {problem}")
    left = [index for index, problem in enumerate(problems) if not problem]
    if not left:
        raise InputError(f"none of the {len(images)} {purpose} images can be used: see above what is wrong with them")
    if len(left) < len(images):
        say(f"{len(images) - len(left)} of {len(images)} {purpose} images are left out")
    return Subset(images, left) if len(left) < len(images) else images
