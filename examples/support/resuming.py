"""Going on where an interrupted run stopped, and only where it is the same run."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from transformers import TrainingArguments

from .errors import InputError


SETTINGS_FILE = "settings.json"
START_ANEW = "give the same value, another --output_dir, or --overwrite_output_dir to start anew"


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as file:
        write(file)
    os.replace(unfinished, path)


def write_json(path: Path, content: dict) -> None:
    """Write JSON that appears whole or not at all."""
    write_atomically(path, lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))


def check_same_run(path: Path, settings: dict, way_out: str) -> None:
    """Compare with the settings in the file `path` that an earlier run left, or leave them there.

    Args:
        path: JSON file.
        settings: What a run must have in common with the one that it goes on with.
        way_out: What to do where they differ.

    Raises:
        InputError: They differ.
    """
    settings = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, settings)
        return
    earlier = json.loads(path.read_text())
    for name in sorted({*settings, *earlier}):
        now, before = settings.get(name), earlier.get(name)
        if now != before:
            raise InputError(
                f"`{name}` is {now}, but the run that {path.parent} holds was started with {before}: {way_out}"
            )


def newest_checkpoint(folder: Path) -> Path | None:
    """The Trainer's last checkpoint that was written whole: its `trainer_state.json` comes last."""
    whole = [path.parent for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def remove_run(folder: Path, *files: str) -> None:
    """Remove the checkpoints of an earlier run and the named files."""
    for path in folder.glob("checkpoint-*"):
        shutil.rmtree(path)
    for name in files:
        (folder / name).unlink(missing_ok=True)


def find_checkpoint(overwrite: bool, settings: dict, training: TrainingArguments) -> str | None:
    """The checkpoint to go on from: the one that the user names, or the newest of the same run, or none.

    Args:
        overwrite: Whether to start anew, without what an earlier run left.
        settings: What a run must have in common with the one that it goes on with.
        training: For its output folder and the checkpoint that the user names.

    Raises:
        InputError: The output folder holds another run, or what the user names is no checkpoint.
    """
    output = Path(training.output_dir)
    if overwrite:
        remove_run(output, SETTINGS_FILE)
    check_same_run(output / SETTINGS_FILE, settings, START_ANEW)
    chosen = training.resume_from_checkpoint
    if chosen and not Path(chosen, "trainer_state.json").exists():
        raise InputError(f"--resume_from_checkpoint is {chosen}, which is no checkpoint: give a folder `checkpoint-…`")
    newest = newest_checkpoint(output)
    return chosen or (str(newest) if newest else None)
