"""A lock ends with its process, whatever ends that; those who only look do not take each other for its holder."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from files.locks import is_locked, locked


def hold(path: Path, ready: multiprocessing.synchronize.Event) -> None:
    with locked(path):
        ready.set()
        signal.pause()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_ends_with_its_process(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.mkdir() if kind == "folder" else path.touch()
    fork = multiprocessing.get_context("fork")
    ready = fork.Event()
    holder = fork.Process(target=hold, args=(path, ready))
    holder.start()
    ready.wait(60)
    with locked(path, wait=False) as is_ours:
        assert not is_ours
    descriptors = [os.open(path, os.O_RDONLY) for _ in range(2)]
    assert all(map(is_locked, descriptors))
    holder.kill()
    holder.join()
    assert not any(map(is_locked, descriptors))  # and the one that looked first has left no lock
    with locked(path.rename(tmp_path / "other"), wait=False) as is_ours:
        assert is_ours
        assert is_locked(descriptors[0])
    for descriptor in descriptors:
        os.close(descriptor)
