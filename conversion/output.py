"""A folder that appears whole or not at all: written beside its place, then renamed."""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from conversion.command import ConversionError, explain


def check_output(target: Path, overwrite: bool) -> None:
    """Refuse a target that is no folder, or that holds something which the user did not say to overwrite.

    Raises:
        ConversionError: It is refused.
    """
    if target.exists() and not target.is_dir():
        raise ConversionError(f"{target} is a file; give another --output folder")
    if target.is_mount():
        raise ConversionError(f"{target} is a mount point, which cannot be replaced; give a folder inside it")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise ConversionError(f"{target} is not empty; give --overwrite to replace what a conversion writes there")


@contextmanager
def new_folder(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes `target`'s place when the block ends, and vanishes if it fails.

    What stands in `target` is kept, but for the files that the new folder has too.

    Raises:
        ConversionError: `target` is refused or cannot be written; nothing has changed there.
    """
    target = target.resolve()
    building = _sibling(target, "new")
    try:
        check_output(target, overwrite)
        building.mkdir(parents=True)
        yield building
        _keep_others(target, building)
        _put_in_place(building, target)
    except (OSError, SafetensorError) as error:
        raise ConversionError(f"{target} cannot be written: {explain(error)}; nothing was changed there") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sibling(target: Path, role: str) -> Path:
    """A hidden path beside `target`, on the same file system, that nobody uses."""
    return target.parent / f".{target.name}.{secrets.token_hex(4)}.{role}"


def _keep_others(target: Path, building: Path) -> None:
    """Copy what the new folder lacks, such as the `.git` of a clone."""
    if not target.exists():
        return
    for entry in target.iterdir():
        if (building / entry.name).exists():
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.copytree(entry, building / entry.name, symlinks=True)
        else:
            shutil.copy2(entry, building / entry.name, follow_symlinks=False)


def _put_in_place(building: Path, target: Path) -> None:
    """Rename `building` to `target`; if that fails, the old folder is back in its place."""
    aside = _sibling(target, "old")
    try:
        if target.exists():
            target.rename(aside)
        building.rename(target)
    except BaseException:
        if aside.exists() and not target.exists():
            aside.rename(target)
        raise
    finally:
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
