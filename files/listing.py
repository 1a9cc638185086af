"""Folders of image files: one rule for which files of a tree are pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import takewhile
from pathlib import Path

from files.images import SUFFIXES, UNREAD_SUFFIXES

DEEP = "**"  # of a pattern: any number of folders
# What systems and their file managers leave in folders: copies, previews, what was thrown away.
SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"})


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder tree.

    Attributes:
        images: Image files, relative to the folder and sorted.
        unread: Files of picture formats that are not read, likewise.
        closed: Folders within it that could not be opened, and why.
    """

    images: list[Path]
    unread: list[Path]
    closed: dict[Path, str] = field(default_factory=dict)


def list_images(folder: Path, leave_out: Sequence[Path] = (), pattern: Sequence[str] = ()) -> Listing:
    """List the image files of a folder and its sub-folders.

    Nothing with a name that begins with a dot, and nothing below it; no folders of the system; regular files alone. Links
    are followed, and what is met by its own name or through another link before is not listed again. A link that leads
    nowhere is listed, so that the one who reads it can say so.

    Args:
        leave_out: Files, and folders with all that is in them, that are passed over where they lie within the folder.
        pattern: What a file's path within the folder is like, part by part, ``**`` for any number of folders; empty for any.

    Raises:
        OSError: The folder itself cannot be opened.
    """
    root = Path(os.path.realpath(folder))
    apart = {place for path in leave_out if not root.is_relative_to(place := Path(os.path.realpath(path)))}
    seen = set(root.parents)  # a link to a folder around this one would lead back into it
    found, closed = list[Path](), dict[Path, str]()
    pending, links = [(folder, root)], list[Path]()  # paths with their places on the disk
    while pending or links:
        if pending:
            path, place = pending.pop()
        else:  # links last: what is there by its own name keeps that name
            path = links.pop(0)
            place = Path(os.path.realpath(path))
        if place in seen or (apart and not apart.isdisjoint((place, *place.parents))):
            continue
        seen.add(place)
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises where a folder around it is closed
            found.append(path.relative_to(folder))
            continue
        try:
            with os.scandir(path) as opened:
                entries = sorted(opened, key=lambda entry: entry.name)
        except OSError as error:
            if path == folder:
                raise
            closed[path.relative_to(folder)] = error.strerror or type(error).__name__
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                continue
            inner = path / entry.name
            parts = inner.relative_to(folder).parts if pattern else ()
            wanted = _is_picture(inner) and (not pattern or _is_like(parts, pattern))
            deeper = not pattern or _leads_on(parts, pattern)
            if not entry.is_symlink():
                if (deeper and entry.is_dir()) or (wanted and entry.is_file()):
                    pending.append((inner, place / entry.name))
            elif (deeper and os.path.isdir(inner)) or (  # noqa: PTH112 - likewise
                wanted and (os.path.isfile(inner) or not os.path.exists(inner))  # noqa: PTH110, PTH113
            ):
                links.append(inner)
    return Listing(
        sorted(path for path in found if path.suffix.lower() in SUFFIXES),
        sorted(path for path in found if path.suffix.lower() in UNREAD_SUFFIXES),
        closed,
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


def _is_like(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not (parts and pattern):
        return not parts and not pattern
    if pattern[0] == DEEP:
        return any(_is_like(parts[skipped:], pattern[1:] or ("*",)) for skipped in range(len(parts)))
    return fnmatchcase(parts[0], pattern[0]) and _is_like(parts[1:], pattern[1:])


def _leads_on(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether files below a folder may be like a pattern."""
    before = list(takewhile(lambda part: part != DEEP, pattern))
    return all(map(fnmatchcase, parts, before)) and (DEEP in pattern or len(parts) < len(pattern))
