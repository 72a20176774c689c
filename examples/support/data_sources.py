"""What all data sets have in common: what `datasets` loads, its columns, files of names."""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np

from .errors import InputError
from .image_files import ImageFile


def load_splits(
    name: str, config_name: str | None, only_split: str = "train", streaming: bool = False
) -> dict[str, datasets.Dataset | datasets.IterableDataset]:
    """The splits of --dataset_name.

    Args:
        name: What `datasets.load_dataset` takes, or a folder of `save_to_disk`.
        config_name: Configuration of that data set.
        only_split: What to call the rows of a folder that has no splits.
        streaming: Whether to read rows as they are needed.

    Raises:
        InputError: It cannot be loaded, or is to be streamed and is a folder of `save_to_disk`.
    """
    saved = any((Path(name) / file).exists() for file in ("dataset_dict.json", "state.json"))
    if saved and streaming:
        raise InputError(f"--dataset_name is {name}, which is on this disk already: leave out --streaming")
    if saved:
        loaded = load(name, name, function=datasets.load_from_disk)
    else:
        loaded = load(name, name, config_name, streaming=streaming)
    return loaded if isinstance(loaded, dict) else {only_split: loaded}


def load(what: str, *arguments, function=datasets.load_dataset, **options):
    """Call a function of `datasets` that loads something.

    Raises:
        InputError: It could not be loaded.
    """
    try:
        return function(*arguments, **options)
    except Exception as error:  # Loading reads files of any kind and the network: nearly anything can go wrong.
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{what} cannot be loaded by `datasets` ({reason}): give a folder or files that are there, or the name of "
            "a data set that can be reached from here"
        ) from error


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
