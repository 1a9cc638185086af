"""Files that appear whole or not at all, and one sentence where the disk does not take them."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor

from files.held import check_held

NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
MEGABYTE = 1_000_000  # bytes


class WriteError(RuntimeError):
    """A file of a run could not be written; whatever was there before is untouched.

    Args:
        message: Which file and why.

    Attributes:
        advice: How to continue, where the one who caught it knows.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.advice = ""

    def __str__(self) -> str:
        return f"{self.args[0]}{self.advice}."


@contextmanager
def whole_file(
    path: Path,
    mode: str = "wb",
    sync: bool = False,
    size: int | None = None,
    before: Path | None = None,
    replace: bool = True,
) -> Iterator[IO[Any]]:
    """Open a temporary file next to a path and move it into place once it is complete.

    Several processes or threads may write the same path at once: each writes a file of its own, the last one stays. In a
    folder that this process holds and that is not there any more, nothing is written (``files.held.FolderGoneError``).

    Args:
        path: File to write; its folder is created.
        mode: ``wb``, or ``w`` for UTF-8 text whose line ends are kept as written.
        sync: Whether the content and the move must be on the disk before this returns.
        size: About how many bytes will be written, for the message where there is no room.
        before: What the file that is there is renamed to; None: it is replaced.
        replace: Whether a file that is there may be replaced. If not, the one that is complete first stays.

    Raises:
        WriteError: The disk is full or does not take the file; the temporary file is removed.
    """
    check_held(path)
    temporary = path.with_name(f".{path.name}.tmp")
    text = {} if "b" in mode else {"newline": "", "encoding": "utf-8"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, descriptor = _own(temporary) if replace else _fresh(temporary)
        with open(descriptor, mode, **text) as file:  # type: ignore[call-overload]  # noqa: PTH123
            yield file
            file.flush()
            if sync:
                os.fsync(file.fileno())
            if before is not None and path.exists():
                path.replace(before)
            if replace:
                temporary.replace(path)  # while it is open, and so locked
            else:
                _place(temporary, path)
        if sync:
            sync_folder(path.parent)
    except BaseException as error:
        _remove(temporary)
        cause = _disk_error(error)
        if cause is None:
            raise
        raise WriteError(_message(path, cause, size)) from error


def _own(temporary: Path) -> tuple[Path, int]:
    """Open an empty temporary file for this writer alone; what a killed one has left there is used again."""
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            alone = lock_descriptor(descriptor, blocking=False)
            if alone and os.path.samestat(os.fstat(descriptor), temporary.stat()):  # else it was moved into place
                os.truncate(descriptor, 0)
                return temporary, descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    except OSError:  # another one writes the same file, or it is another user's, or the file system has no locks
        pass
    return _fresh(temporary)


def _fresh(temporary: Path) -> tuple[Path, int]:
    """Open a temporary file that no other writer uses, now or later; its name is short, since the file's may be the longest."""
    temporary = temporary.with_name(f".{secrets.token_hex(8)}.tmp")
    return temporary, os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _place(temporary: Path, path: Path) -> None:
    """Give a file its name where nothing has that name, in one step."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: in two steps
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)
    else:
        temporary.unlink()


def second_name(path: Path, name: Path) -> None:
    """Give a file that is only ever replaced as a whole a second name, in one step and without a copy where links are known.

    Args:
        path: The file.
        name: Its second name, on the same disk; a file that has it is replaced.
    """
    check_held(name)
    temporary = name.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        os.link(path, temporary)
    except OSError:  # a file system without links
        with whole_file(name, sync=True, size=path.stat().st_size) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file)
        return
    temporary.replace(name)
    sync_folder(name.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the disk is not writable: the message about the file itself says so


def _disk_error(error: BaseException) -> OSError | None:
    """Return the error of the disk behind an exception; ``torch.save`` hides it behind one of its own."""
    while isinstance(error, Exception):
        if isinstance(error, OSError):
            return error
        if (cause := error.__cause__ or error.__context__) is None:
            return None
        error = cause
    return None


def _message(path: Path, error: OSError, size: int | None) -> str:
    reason = f"{path} could not be written: {error.strerror or error}"
    if error.errno not in NO_ROOM:
        return reason
    needed = f" of the {size / MEGABYTE:.1f} MB needed" if size else ""
    return f"{reason} ({shutil.disk_usage(path.parent).free / MEGABYTE:.1f} MB{needed} are free)"
