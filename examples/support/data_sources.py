"""What all data sets have in common: what `datasets` loads, its columns, files of names."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np

from .errors import InputError
from .image_files import ImageFile


MAX_LISTED = 5  # Broken files that one line names.


def load_splits(name: str, config_name: str | None) -> datasets.DatasetDict:
    """The splits of --dataset_name.

    Raises:
        InputError: It cannot be loaded.
    """
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))
    try:
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config_name)
    except Exception as error:  # Loading reads files of any kind and the network: nearly anything can go wrong.
        raise InputError(
            f"--dataset_name is {name}, which `datasets` cannot load ({error}): give a name on the Hub that can be "
            "reached from here or a local folder"
        ) from error
    return loaded if isinstance(loaded, dict) else datasets.DatasetDict({"train": loaded})


def check_choice(what: str, value: str, choices: Iterable[str]) -> None:
    """Raise an `InputError` unless `value` is one of the choices."""
    if value not in choices:
        raise InputError(f"--{what} is {value}, which the data set does not have: give one of {', '.join(choices)}")


def read_lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty.

    Raises:
        InputError: It cannot be read.
    """
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as a text file with a class on each line ({error})") from error


def to_file(value: dict | list | None) -> ImageFile | np.ndarray:
    """What `datasets` gives for an undecoded image as something to open; a nested list as an array."""
    if not isinstance(value, dict):
        return np.array(value if value is not None else [])
    return BytesIO(value["bytes"]) if value.get("bytes") is not None else Path(value["path"])
