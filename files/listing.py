"""Folders of image files: one rule for which files of a tree are pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from files.images import SUFFIXES, UNREAD_SUFFIXES

# What systems and their file managers leave in folders: copies, previews, what was thrown away.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"})


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder tree.

    Attributes:
        images: Image files, relative to the folder and sorted.
        unread: Files of picture formats that are not read, likewise.
    """

    images: list[Path]
    unread: list[Path]


def list_images(folder: Path, leave_out: Sequence[Path] = ()) -> Listing:
    """List the image files of a folder and its sub-folders.

    Nothing with a name that begins with a dot, and nothing below it; no folders of the system; regular files alone. Links
    are followed, and what is met by its own name or through another link before is not listed again. A link that leads
    nowhere is listed, so that the one who reads it can say so.

    Args:
        leave_out: Folders that are passed over with all that is in them, where they lie within the folder.
    """
    root = Path(os.path.realpath(folder))
    apart = [place for path in leave_out if not root.is_relative_to(place := Path(os.path.realpath(path)))]
    seen = set(root.parents)  # a link to a folder around this one would lead back into it
    found: list[Path] = []
    pending, links = [(folder, root)], list[Path]()  # paths with their places on the disk
    while pending or links:
        if pending:
            path, place = pending.pop()
        else:  # links last: what is there by its own name keeps that name
            path = links.pop(0)
            place = Path(os.path.realpath(path))
        if place in seen or any(place.is_relative_to(other) for other in apart):
            continue
        seen.add(place)
        if not path.is_dir():
            found.append(path.relative_to(folder))
            continue
        with os.scandir(path) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                    continue
                inner = path / entry.name
                if not entry.is_symlink():
                    if entry.is_dir() or (entry.is_file() and _is_picture(inner)):
                        pending.append((inner, place / entry.name))
                elif inner.is_dir() or (_is_picture(inner) and (inner.is_file() or not inner.exists())):
                    links.append(inner)
    return Listing(
        sorted(path for path in found if path.suffix.lower() in SUFFIXES),
        sorted(path for path in found if path.suffix.lower() in UNREAD_SUFFIXES),
    )


def file_state(file: Path) -> tuple[int, int]:
    """Return what tells whether a file is still the same.

    Args:
        file: The file; of a link that leads nowhere, the link itself counts.

    Returns:
        Size in bytes and time of the last change in ns.
    """
    state = file.stat() if file.exists() else file.lstat()
    return state.st_size, state.st_mtime_ns


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or path.suffix.lower() in UNREAD_SUFFIXES
