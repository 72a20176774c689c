"""Accelerate's checkpoints, made so that nothing is lost: whole or not there, checked before they are used.

A checkpoint is written into a hidden folder, gets a list of its files' digests, and only then its name. On several
nodes the output folder must be one that all of them share.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from .errors import InputError, say
from .resuming import write_json


DIGESTS_FILE = "digests.json"
# What safetensors, torch and everything else raise when the disk is full.
WRITING_ERRORS = (OSError, SafetensorError, RuntimeError)


def checkpoint_step(folder: Path) -> int:
    """Updates of the weights that a checkpoint has behind it, by its name."""
    return int(folder.name.rpartition("-")[2])


def list_checkpoints(output: Path) -> list[Path]:
    """Folders of all checkpoints in `output`, whole or not, newest first."""
    folders = [path for path in output.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=checkpoint_step, reverse=True)


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Within it, a failure to write becomes one line with the way out.

    Raises:
        InputError: Writing failed, for one because the disk is full.
    """
    try:
        yield
    except WRITING_ERRORS as error:
        reason = " ".join(str(error).split())
        free = shutil.disk_usage(target.parent).free / 2**20
        raise InputError(
            f"{target} could not be written ({reason[:200]}; {free:,.0f} MB are free there): make room, then the same "
            "command goes on from the last checkpoint"
        ) from error


def save_checkpoint(accelerator: Accelerator, output: Path, step: int, limit: int | None) -> None:
    """Save all that was prepared or registered with the accelerator. All processes must call it.

    Args:
        accelerator: Saves its state.
        output: Folder that gets a folder `checkpoint-STEP`.
        step: Updates of the weights up to now.
        limit: Number of checkpoints to keep, or `None` for all.

    Raises:
        InputError: It could not be written; earlier checkpoints are still there.
    """
    target, unfinished = output / f"checkpoint-{step}", output / f".checkpoint-{step}.unfinished"
    if accelerator.is_main_process:
        remove_unfinished(output)
    accelerator.wait_for_everyone()
    try:
        with writing(target):
            accelerator.save_state(str(unfinished))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                finish_checkpoint(unfinished, target)
    except InputError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if accelerator.is_main_process and limit is not None:
        for old in list_checkpoints(output)[limit:]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> None:
    """Load all that was prepared or registered with the accelerator. All processes must call it.

    Raises:
        InputError: It does not fit.
    """
    try:
        accelerator.load_state(str(folder))
    except Exception as error:  # Versions of libraries differ, and each raises its own.
        reason = " ".join(str(error).split())
        raise InputError(
            f"{folder} cannot be loaded ({reason[:300]}): remove it to go on from the one before, or give "
            "--overwrite_output_dir to start anew"
        ) from error


def finish_checkpoint(unfinished: Path, target: Path) -> None:
    """Write down the digest of each file and give the folder its name."""
    write_json(unfinished / DIGESTS_FILE, digests_of(unfinished))
    shutil.rmtree(target, ignore_errors=True)  # Only a broken one can be there.
    unfinished.rename(target)


def remove_unfinished(output: Path) -> None:
    """Remove what processes that were killed while they saved have left."""
    for path in output.glob(".checkpoint-*.unfinished"):
        shutil.rmtree(path)


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of each file in a folder and below, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != DIGESTS_FILE)
    return {path.relative_to(folder).as_posix(): digest_of(path) for path in files}


def digest_of(path: Path) -> str:
    """SHA-256 of a file, which need not fit into memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def damage_of(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or `None`."""
    try:
        expected = json.loads((folder / DIGESTS_FILE).read_text())
    except (OSError, ValueError):
        return f"it has no readable {DIGESTS_FILE}"
    actual = digests_of(folder)
    changed = sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))
    return f"{', '.join(changed)} changed since it was written" if changed else None


def newest_whole_checkpoint(output: Path) -> Path | None:
    """The newest checkpoint without damage, if there is one; others are said."""
    for folder in list_checkpoints(output):
        damage = damage_of(folder)
        if damage is None:
            return folder
        say(f"{folder} is passed over: {damage}")
    return None


def choose_checkpoint(accelerator: Accelerator, output: Path, chosen: str | None) -> Path | None:
    """The checkpoint to go on from: the one that the user names, or the newest whole one, or none.

    One process decides for all.

    Raises:
        InputError: What the user names is no whole checkpoint.
    """
    answer = [None, None]
    if accelerator.is_main_process:
        folder = Path(chosen) if chosen else newest_whole_checkpoint(output)
        answer = [folder, damage_of(folder) if chosen else None]
    folder, damage = broadcast_object_list(answer)
    if damage:
        raise InputError(
            f"--resume_from_checkpoint is {chosen}, which is no whole checkpoint ({damage}): give a folder "
            "`checkpoint-…` that this script wrote"
        )
    return folder
