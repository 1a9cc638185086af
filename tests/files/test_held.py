"""A folder that is written for a long time: one writer, also without its lock file, and nothing is written where it was."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from files.held import LOCK_NAME, FolderGoneError, InUseError, check_held, held, is_held
from files.whole import whole_file
from launch.errors import EXIT_RUN_FAILED, exit_code


def enter(folder: Path) -> None:
    with held(folder):
        return


@pytest.mark.parametrize("change", ["nothing", "lock removed", "lock replaced", "renamed"])
def test_no_second_writer_gets_in(change: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with held(folder):
        if change.startswith("lock"):
            (folder / LOCK_NAME).unlink()
        if change == "lock replaced":
            (folder / LOCK_NAME).touch()
        if change == "renamed":
            folder = folder.rename(tmp_path / "other")
        assert is_held(folder)
        with pytest.raises(InUseError):
            enter(folder)
    assert not is_held(folder)
    enter(folder)


def test_looking_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_held(folder)
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    assert not is_held(folder)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("change", ["renamed", "removed", "replaced"])
def test_nothing_is_written_where_a_folder_was(change: str, tmp_path: Path) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    with held(folder):
        check_held(folder / "a")
        shutil.rmtree(folder) if change == "removed" else folder.rename(other)
        if change == "replaced":
            folder.mkdir()
        with pytest.raises(FolderGoneError) as error, whole_file(folder / "images" / "a.json", "w"):
            pass
        check_held(other / "a")  # not a place that is held
    assert error.value.now == (None if change == "removed" else other)
    assert str(folder) in str(error.value)
    assert exit_code(error.value) == EXIT_RUN_FAILED
    assert not folder.exists() or not list(folder.iterdir())
