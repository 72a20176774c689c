"""Images with annotations, not checked yet: from a COCO file, or from anything that `datasets` loads."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import datasets

from .coco_annotations import Category
from .data_sources import to_file
from .errors import InputError
from .image_files import ImageFile


PARTS = ("images", "annotations", "categories")


class AnnotatedImage(NamedTuple):
    """An image, not read yet, and its COCO annotations.

    Attributes:
        name: What errors call it.
        open: Gives its path or content.
        id: Its id, unique.
        size: Height and width in pixels that the annotations are for, where they say so.
        annotations: What errors call each, and what it says.
    """

    name: str
    open: Callable[[], ImageFile]
    id: int
    size: tuple[int, int] | None
    annotations: Sequence[tuple[str, dict]]


def read_json(path: Path) -> dict:
    """Content of a COCO file.

    Raises:
        InputError: It is no such file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a COCO annotation file ({error})") from error
    for part in PARTS:
        rows = content.get(part) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(
                f"{path} is no COCO annotation file: `{part}` must be a list of objects, as `images`, `annotations` "
                "and `categories` all are"
            )
    return content


def field_of(row: dict, name: str, kind: type, where: str):
    """A field that must be there and of the right kind."""
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError(f"{where}: `{name}` is {value!r}, but it must be of type {kind.__name__}")
    return value


def read_categories(content: dict, path: Path) -> list[Category]:
    """Categories of a COCO file, as they come."""
    return [
        Category(
            field_of(row, "id", int, f"{path}, categories[{index}]"),
            field_of(row, "name", str, f"{path}, categories[{index}]"),
        )
        for index, row in enumerate(content["categories"])
    ]


def read_images(content: dict, path: Path, folder: Path) -> list[AnnotatedImage]:
    """Images of a COCO file, those without annotations too.

    Raises:
        InputError: An image or an annotation does not say what it is.
    """
    images = {}
    for index, row in enumerate(content["images"]):
        where = f"{path}, images[{index}]"
        file, number = folder / field_of(row, "file_name", str, where), field_of(row, "id", int, where)
        if number in images:
            raise InputError(f"{where}: the `id` {number} is that of {images[number].name} too: give each its own")
        height, width = row.get("height"), row.get("width")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        images[number] = AnnotatedImage(str(file), partial(Path, file), number, size, [])
    for index, row in enumerate(content["annotations"]):
        name = f"annotation {row['id']}" if "id" in row else f"annotations[{index}]"
        if row.get("image_id") not in images:
            raise InputError(f"{path}, {name}: `image_id` is {row.get('image_id')!r}, but no image has this `id`")
        images[row["image_id"]].annotations.append((name, row))
    return list(images.values())


def read_rows(rows: datasets.Dataset, split: str, image_column: str, objects_column: str) -> Iterable[AnnotatedImage]:
    """Rows of a data set, whose column of objects holds `bbox` and `category`, maybe `segmentation` and the like."""
    images = rows.cast_column(image_column, datasets.Image(decode=False)).select_columns([image_column])
    for index, objects in enumerate(rows.select_columns([objects_column])[objects_column]):
        annotations = [
            (f"object {row.get('id', place)}", {**row, "category_id": row.get("category")})
            for place, row in enumerate(rows_of(objects))
        ]
        name = f"{split}[{index}]"
        yield AnnotatedImage(name, partial(file_of_row, images, index, image_column), index + 1, None, annotations)


def rows_of(objects: dict[str, list] | list[dict] | None) -> list[dict]:
    """The objects of an image one by one, from a list of them, or from a list for each of their fields."""
    if not isinstance(objects, dict):
        return objects or []
    columns = {name: values for name, values in objects.items() if values is not None}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def file_of_row(images: datasets.Dataset, index: int, column: str) -> ImageFile:
    """Image of a row as something to open."""
    return to_file(images[index][column])


def names_of_categories(rows: datasets.Dataset, objects_column: str) -> list[str]:
    """Names of the categories, where the data set has them."""
    feature = rows.features[objects_column]
    feature = getattr(feature, "feature", feature)
    feature = feature.get("category") if isinstance(feature, dict) else None
    return list(getattr(getattr(feature, "feature", feature), "names", None) or [])
