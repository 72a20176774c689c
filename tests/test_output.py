"""An output folder appears whole or not at all, and what stood there survives every failure."""

import errno
import os
from pathlib import Path

import pytest

from conversion.command import ConversionError
from conversion.output import new_folder


class Stopped(BaseException):
    """Stops the work as Ctrl-C does."""


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too, by its path."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def write(target: Path, text: str = "new", overwrite: bool = False) -> None:
    with new_folder(target, overwrite) as folder:
        (folder / "config.json").write_text(text)


@pytest.fixture
def occupied(tmp_path):
    target = tmp_path / "model"
    (target / ".git").mkdir(parents=True)
    (target / "config.json").write_text("old")
    (target / "notes.txt").write_text("mine")
    (target / ".git" / "HEAD").write_text("main")
    return target


def test_a_new_folder_with_its_parents(tmp_path):
    write(tmp_path / "a" / "b")
    assert contents(tmp_path) == {"a/b/config.json": "new"}


def test_it_appears_only_when_it_is_whole(tmp_path):
    with new_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("new")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model").is_dir()


def test_others_may_read_it(tmp_path):
    write(tmp_path / "model")
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "model").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "model").mkdir()
    write(tmp_path / "model")
    assert contents(tmp_path) == {"model/config.json": "new"}


def test_an_occupied_folder_is_refused(occupied):
    before = contents(occupied.parent)
    with pytest.raises(ConversionError, match="is not empty; give --overwrite"):
        write(occupied)
    assert contents(occupied.parent) == before


def test_overwriting_keeps_what_is_not_written(occupied):
    write(occupied, overwrite=True)
    assert contents(occupied.parent) == {
        "model/.git/HEAD": "main",
        "model/config.json": "new",
        "model/notes.txt": "mine",
    }


def test_overwriting_through_a_link_replaces_the_folder_it_leads_to(occupied):
    link = occupied.with_name("link")
    link.symlink_to(occupied)
    write(link, overwrite=True)
    assert link.is_symlink()
    assert (occupied / "config.json").read_text() == "new"


def test_a_file_is_refused_even_with_overwrite(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ConversionError, match="is a file"):
        write(tmp_path / "model", overwrite=True)
    assert contents(tmp_path) == {"model": "mine"}


def test_below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConversionError, match="cannot be written: (Not a directory|File exists)"):
        write(tmp_path / "file" / "model")
    assert contents(tmp_path) == {"file": "mine"}


@pytest.mark.parametrize("error", [Stopped(), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_while_writing_changes_nothing(occupied, error, overwrite):
    target = occupied if overwrite else occupied.with_name("another")
    before = contents(occupied.parent)
    with pytest.raises(ConversionError if isinstance(error, OSError) else type(error)):
        with new_folder(target, overwrite) as folder:
            (folder / "config.json").write_text("half")
            raise error
    assert contents(occupied.parent) == before
    assert sorted(os.listdir(occupied.parent)) == ["model"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
@pytest.mark.parametrize("failing", [1, 2])
def test_a_failure_while_renaming_changes_nothing(occupied, monkeypatch, error, failing):
    before = contents(occupied.parent)
    rename, calls = Path.rename, []

    def fail_once(self, target):
        calls.append(self)
        if len(calls) == failing:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(ConversionError if isinstance(error, OSError) else KeyboardInterrupt):
        write(occupied, overwrite=True)
    assert contents(occupied.parent) == before
    assert sorted(os.listdir(occupied.parent)) == ["model"]


def test_a_failure_while_keeping_other_files_changes_nothing(occupied, monkeypatch):
    before = contents(occupied.parent)

    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copy2", fail)
    with pytest.raises(ConversionError, match="No space left on device; nothing was changed"):
        write(occupied, overwrite=True)
    assert contents(occupied.parent) == before
    assert sorted(os.listdir(occupied.parent)) == ["model"]
