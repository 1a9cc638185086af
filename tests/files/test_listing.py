"""Which files of a folder are its pictures."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from files.listing import file_state, list_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / ".cache" / "pictures"  # what lies above the folder does not hide it
    for name in (
        "a.png", "B.JPG", "sub/deeper/c.tiff", "._a.png", ".hidden.png", ".thumbnails/a.png", "sub/.ipynb_checkpoints/c.png",
        "__MACOSX/a.png", "@eaDir/a.png", "Thumbs.db", "notes.txt", "phone.heic", "dir.png/inside.gif", "blobs/0123",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


OWN = ["B.JPG", "a.png", "dir.png/inside.gif", "sub/deeper/c.tiff"]


def listed(folder: Path, *leave_out: Path) -> list[str]:
    return [path.as_posix() for path in list_images(folder, leave_out).images]


def test_hidden_files_system_folders_and_other_files_are_no_pictures(folder: Path) -> None:
    assert listed(folder) == OWN
    assert list_images(folder).unread == [Path("phone.heic")]


def test_a_folder_that_cannot_be_opened_costs_itself_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def scandir(path: Path):  # permissions do not stop the user of the tests, who may be root
        if path in closed:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    closed = [folder / "sub"]
    listing = list_images(folder)
    assert [path.as_posix() for path in listing.images] == OWN[:3]
    assert listing.closed == {Path("sub"): "Permission denied"}
    closed = [folder]
    with pytest.raises(PermissionError):
        list_images(folder)


def test_only_regular_files_are_listed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    monkeypatch.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        assert listed(folder) == OWN


def test_links_are_followed_once(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.png").write_bytes(b"")
    (folder / "0_same_file.png").symlink_to("a.png")
    (folder / "0_same_folder").symlink_to("sub")
    (folder / "sub" / "back").symlink_to(folder)
    (folder / "sub" / "above").symlink_to(tmp_path / ".cache")
    (folder / "sub" / "itself.png").symlink_to("itself.png")
    (folder / "named.png").symlink_to("blobs/0123")  # as caches keep their files
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (folder / "out_again").symlink_to(tmp_path / "elsewhere")
    (folder / "nowhere.png").symlink_to("missing")
    expected = [*OWN, "named.png", "nowhere.png", "out/far.png", "sub/itself.png"]
    assert listed(folder) == sorted(expected)
    for name in expected:
        assert len(file_state(folder / name)) == 2


def test_patterns_have_the_rules_of_folders(folder: Path) -> None:
    def like(*pattern: str) -> list[str]:
        return [path.as_posix() for path in list_images(folder, (), pattern).images]

    (folder / "again.png").symlink_to("a.png")
    (folder / "linked").symlink_to("sub")
    (folder / "sub" / "back").symlink_to(folder)
    assert like("**", "*") == like("**") == OWN
    assert like("*.png") == ["a.png"]
    assert like("ag*.png") == ["again.png"]  # the one of its names that was asked for
    assert like("li*", "*", "*") == ["linked/deeper/c.tiff"]
    assert like("**.png") == ["a.png"]
    assert like("**", "*.[gt]i*") == ["dir.png/inside.gif", "sub/deeper/c.tiff"]
    assert like(".*") == like("@eaDir", "*") == like("*.txt") == []


def test_folders_are_left_out_by_their_place(folder: Path, tmp_path: Path) -> None:
    assert listed(folder, folder / "sub" / ".." / "sub", folder / "not_there") == OWN[:3]
    assert listed(folder, folder.parent, folder) == OWN  # they are around it, not within
    (folder / "link").symlink_to(folder / "sub")
    assert listed(folder, folder / "link") == OWN[:3]
    (folder / "file.png").symlink_to(folder / "sub" / "deeper" / "c.tiff")
    assert listed(folder, folder / "sub") == OWN[:3]
