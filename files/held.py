"""A folder that one process writes for a long time: locked, and noticed when it is renamed, removed or replaced meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor

from files.locks import is_locked

LOCK_NAME = ".lock"


class InUseError(RuntimeError):
    """Another process holds the folder."""


class FolderGoneError(RuntimeError):
    """A held folder is not at its path any more; nothing is written there.

    Args:
        now: Where the folder is now, or None where it was removed or that cannot be found out.

    Attributes:
        advice: How to continue, where the one who caught it knows.
    """

    def __init__(self, folder: Path, now: Path | None) -> None:
        what = f"was renamed to {now}" if now else "was removed or renamed"
        super().__init__(f"{folder} {what} while it was being written; nothing was written there since")
        self.folder = folder
        self.now = now
        self.advice = ""

    def __str__(self) -> str:
        return f"{self.args[0]}{self.advice}."


@dataclass(frozen=True)
class _Held:
    folder: Path
    descriptor: int

    def check(self) -> None:
        try:
            if os.path.samestat(self.folder.stat(), os.fstat(self.descriptor)):
                return
        except OSError:  # there is nothing of that name
            pass
        raise FolderGoneError(self.folder, self._now())

    def _now(self) -> Path | None:
        try:  # the system's own name of an open folder, where it has one
            now = Path(f"/proc/self/fd/{self.descriptor}").readlink()
            return now if os.path.samestat(now.stat(), os.fstat(self.descriptor)) else None
        except OSError:
            return None


_held: list[_Held] = []


@contextmanager
def held(folder: Path, alone: bool = True) -> Iterator[None]:
    """Hold a folder: ``check_held`` knows it from now on, and where no other process may write it, none can.

    The folder itself is locked, so that the lock goes with it under another name and cannot be removed, and a file in it
    too, for file systems that lock no folders. Both locks end with the process, however it ends. A folder that another
    process holds is an ``InUseError``.

    Args:
        folder: The folder; it is made where it is not there.
        alone: Whether to lock it.
    """
    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    descriptors = [os.open(folder, os.O_RDONLY)]
    entry = _Held(folder, descriptors[0])
    try:
        if alone:
            descriptors.append(os.open(folder / LOCK_NAME, os.O_WRONLY | os.O_CREAT, 0o666))
            for descriptor in descriptors:
                _lock(descriptor)
        _held.append(entry)
        yield
    finally:
        if entry in _held:
            _held.remove(entry)
        for descriptor in descriptors:
            os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Say whether a live process holds a folder alone; nothing is written.

    Args:
        folder: The folder, which may be one that cannot be written.

    Returns:
        Whether ``held`` would be refused.
    """
    for path in (folder, folder / LOCK_NAME):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:  # it is not there, or not for us to read
            continue
        try:
            if is_locked(descriptor):
                return True
        finally:
            os.close(descriptor)
    return False


def _lock(descriptor: int) -> None:
    with suppress(OSError):  # the file system locks no folders, or none that is open for reading: the other lock holds
        if not lock_descriptor(descriptor, blocking=False):
            raise InUseError


def check_held(path: Path) -> None:
    """Check that the folders that this process holds are still what they were, before something is written there.

    One that was renamed, removed or replaced by another one is a ``FolderGoneError``.

    Args:
        path: What is about to be written; folders that it does not lie in are not looked at.
    """
    path = path.absolute()
    for entry in _held:
        if path == entry.folder or entry.folder in path.parents:
            entry.check()
