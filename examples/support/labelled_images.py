"""Images with the index of their class, not decoded yet, from tables and streams of `datasets`."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import datasets
import fsspec
from PIL import Image

from .data_sources import to_file
from .errors import InputError
from .image_files import ImageFile, open_as_rgb


class LabelledImage(NamedTuple):
    """An image, not read yet unless it is one already, with what errors call it, and its class."""

    name: str
    image: ImageFile | Image.Image
    label: int

    def open(self) -> Image.Image:
        """The image in RGB; grey is repeated.

        Raises:
            InputError: It cannot be decoded.
        """
        return self.image.convert("RGB") if isinstance(self.image, Image.Image) else open_as_rgb(self.name, self.image)


@dataclass(frozen=True)
class RowReader:
    """Makes a `LabelledImage` of a row.

    Attributes:
        split: What errors call the table.
        image_column: Name of the column of images that `datasets` does not decode.
        label_column: Name of the column of labels: indices, or names.
        names: Names of the classes.
    """

    split: str
    image_column: str
    label_column: str
    names: Sequence[str]

    @cached_property
    def indices(self) -> dict[str, int]:
        """Index of each name."""
        return {name: index for index, name in enumerate(self.names)}

    def name_of(self, row: dict, index: int) -> str:
        """What errors call a row: its place and, where there is one, its file."""
        path = (row[self.image_column] or {}).get("path")
        return f"`{self.image_column}` of {self.split}[{index}]" + (f" ({path})" if path else "")

    def read(self, row: dict, index: int) -> LabelledImage:
        """Image and label of a row.

        Raises:
            InputError: There is no image, or the label is none of the classes.
        """
        name = self.name_of(row, index)
        if row[self.image_column] is None:
            raise InputError(f"{name} is empty, but each row needs an image: leave it out")
        return LabelledImage(name, to_file(row[self.image_column]), self.label_of(row[self.label_column], name))

    def label_of(self, value: int | str | None, name: str) -> int:
        """Index of a class, given as such or by name."""
        label = self.indices.get(value) if isinstance(value, str) else value
        if label is None or not 0 <= label < len(self.names):
            raise InputError(
                f"{name} has the label {value}, but there are {len(self.names)} classes, 0 ({self.names[0]}) to "
                f"{len(self.names) - 1} ({self.names[-1]}): leave it out, or give all classes with --class_names"
            )
        return int(label)


class TableImages(Sequence):
    """The rows of a `datasets.Dataset`.

    Args:
        rows: Table, whose images are not decoded.
        reader: What makes images of its rows.
    """

    def __init__(self, rows: datasets.Dataset, reader: RowReader):
        self.rows, self.reader = rows, reader

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def __getitem__(self, index: int) -> LabelledImage:
        """One row."""
        return self.reader.read(self.rows[index], index)


class StreamedImages:
    """The rows of a `datasets.IterableDataset`.

    Args:
        rows: Stream, whose images are not decoded.
        reader: What makes images of its rows.
    """

    def __init__(self, rows: datasets.IterableDataset, reader: RowReader):
        self.rows, self.reader = rows, reader

    def read(self, row: dict, index: int) -> LabelledImage:
        """Image, its whole file in memory, and label of a row.

        Raises:
            InputError: It is broken.
        """
        file = row[self.reader.image_column]
        if file and file.get("bytes") is None:
            file = {**file, "bytes": read_bytes(file["path"], self.reader.name_of(row, index))}
        return self.reader.read({**row, self.reader.image_column: file}, index)


def read_bytes(path: str, name: str) -> bytes:
    """Content of a file at a path or address.

    Raises:
        InputError: It cannot be read.
    """
    try:
        with fsspec.open(path, "rb") as file:
            return file.read()
    except Exception as error:  # File systems and networks raise nearly anything.
        raise InputError(f"{name} cannot be read ({error}): mend it or leave it out") from error
