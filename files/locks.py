"""Locks between processes, by the ``filelock`` library; each ends with the process that has it, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Lock a file or a folder itself, so that the lock goes with it under another name.

    Args:
        path: A folder that is there, or a file, which is made where it is not.
        wait: Whether to wait while another one has the lock.

    Yields:
        Whether it is locked now.
    """
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        yield lock_descriptor(descriptor, blocking=wait)
    finally:
        os.close(descriptor)


def is_locked(descriptor: int) -> bool:
    """Say whether another one has locked an open file or folder.

    By a shared lock, which ``filelock`` has not for a descriptor: those who look at the same time must not take each other
    for the one who holds it, and a folder that nobody may write can be looked at too.

    Args:
        descriptor: The file or folder, opened for reading.

    Returns:
        Whether it is locked; False on a file system without locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(descriptor, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
