"""Checkpoints are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from callbacks.checkpoint import AtomicCheckpointIO, LastCheckpoint


class Unpicklable:
    def __reduce__(self) -> tuple:
        raise RuntimeError("disk full")


def test_an_interrupted_write_leaves_the_previous_file_whole(tmp_path: Path) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint({"x": torch.ones(3)}, path)
    with pytest.raises(RuntimeError, match="disk full"):
        io.save_checkpoint({"x": torch.zeros(3), "bad": Unpicklable()}, path)
    assert torch.equal(io.load_checkpoint(path)["x"], torch.ones(3))


def test_a_file_that_would_run_code_is_never_unpickled(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple:
            return (Path.touch, (marker,))

    path = tmp_path / "bad.ckpt"
    torch.save({"x": Attack()}, path)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not marker.exists()


def test_bad_interval_names_the_key() -> None:
    with pytest.raises(ValueError, match="callbacks.checkpoint.every_n_steps"):
        LastCheckpoint(every_n_steps=0)
