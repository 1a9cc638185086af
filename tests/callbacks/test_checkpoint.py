"""Checkpoints are whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from PIL import Image

from callbacks.checkpoint import STOP_SIGNALS, AtomicCheckpointIO, Interrupted, LastCheckpoint, num_bytes
from callbacks.ema import EMA
from callbacks.image_grid import PeriodicGrid
from files.grids import write_png
from files.held import FolderGoneError, held
from files.whole import WriteError, whole_file
from generative.weights import NotLoadedError
from launch.errors import exit_code
from launch.metrics_csv import MetricsCSV
from launch.run_folder import RunFolder, write_json


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
    with pytest.raises(NotLoadedError, match="could run code"):
        AtomicCheckpointIO().load_checkpoint(path, weights_only=False)
    assert not marker.exists()


def test_bad_interval_names_the_key() -> None:
    with pytest.raises(ValueError, match="callbacks.checkpoint.every_n_steps"):
        LastCheckpoint(every_n_steps=0)


def test_at_every_moment_of_a_write_a_whole_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder as a kill would leave it before each call that changes what is on the disk."""
    io, run, moments = AtomicCheckpointIO(), RunFolder(tmp_path / "run"), []
    for step in (1, 2):
        io.save_checkpoint({"global_step": step, "state_dict": {}}, run.path / "checkpoints" / "last.ckpt")

    def noting(original: Callable) -> Callable:
        def call(*args: object) -> object:
            moments.append(RunFolder(tmp_path / f"moment{len(moments)}"))
            shutil.copytree(run.path, moments[-1].path)
            return original(*args)

        return call

    monkeypatch.setattr(Path, "replace", noting(Path.replace))
    monkeypatch.setattr(os, "fsync", noting(os.fsync))
    io.save_checkpoint({"global_step": 3, "state_dict": {}}, run.path / "checkpoints" / "last.ckpt")
    monkeypatch.undo()
    assert [moment.load_checkpoint()["global_step"] for moment in moments] == [2, 2, 2, 3]
    assert run.load_checkpoint()["global_step"] == 3
    assert [moment.checkpoint.name for moment in moments] == ["last.ckpt", "last.ckpt", "previous.ckpt", "last.ckpt"]


def test_a_write_that_fails_half_way_keeps_the_file_and_says_why(tmp_path: Path, file_limit) -> None:
    io, path = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint({"x": torch.ones(3)}, path)
    file_limit(50_000)
    with pytest.raises(WriteError, match=r"last\.ckpt could not be written: File too large"):
        io.save_checkpoint({"x": torch.zeros(100_000)}, path)
    assert torch.equal(io.load_checkpoint(path)["x"], torch.ones(3))
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_no_room_is_said_in_megabytes(tmp_path: Path) -> None:
    with (
        pytest.raises(WriteError, match=r"No space left on device \([\d.]+ MB of the 12\.0 MB needed are free\)"),
        whole_file(tmp_path / "last.ckpt", size=num_bytes({"x": [torch.zeros(3_000_000)], "y": 1})),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_after_its_file_is_written_names_the_step_of_the_file(
    restorer, data, make_trainer, tmp_path, monkeypatch
) -> None:
    """As where another rank is lost before it says that it has seen the save."""
    trainer = make_trainer(LastCheckpoint(every_n_steps=3), val_check_interval=None, plugins=[AtomicCheckpointIO()])

    def barrier(name: str | None = None) -> None:
        if name == "Trainer.save_checkpoint" and trainer.global_step == 6:
            raise RuntimeError("a rank is lost")

    monkeypatch.setattr(trainer.strategy, "barrier", barrier)
    with pytest.raises(RuntimeError, match="a rank is lost") as error:
        trainer.fit(restorer, data)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["global_step"] == 6
    assert f"the last good checkpoint is {path} of step 6" in error.value.__notes__[0]


def test_a_run_that_cannot_save_says_where_it_can_go_on(restorer, data, make_trainer, tmp_path, file_limit) -> None:
    class Fill(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
            if trainer.global_step == 5:
                file_limit(1000)

    options = {"val_check_interval": None, "plugins": [AtomicCheckpointIO()]}
    trainer = make_trainer(Fill(), LastCheckpoint(every_n_steps=3), **options)
    with pytest.raises(WriteError) as error:
        trainer.fit(restorer, data)
    path = tmp_path / "checkpoints" / "last.ckpt"
    assert f"at step 6; the last good checkpoint is {path} of step 3" in str(error.value)
    assert f"resume={tmp_path}" in str(error.value)
    assert torch.load(path, weights_only=True)["global_step"] == 3
    assert exit_code(error.value) == 3


@pytest.mark.parametrize("write", ["json", "csv", "png"])
def test_other_files_say_it_too(write: str, tmp_path: Path, file_limit) -> None:
    path, log = tmp_path / f"a.{write}", MetricsCSV(str(tmp_path))
    log.log_metrics({f"metric{i}": i for i in range(3000)}, 1)
    log.log_metrics({f"metric{i}": i for i in range(3000)}, 2)
    writers = {
        "json": lambda: write_json(path, {"x": list(range(10_000))}),
        "png": lambda: write_png(Image.effect_noise((200, 200), 50), path),
        "csv": log.save,
    }
    file_limit(5000)
    with pytest.raises(WriteError, match="could not be written: File too large"):
        writers[write]()
    log.finalize("failed")  # a run that has failed ends with its own error
    assert not path.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
@pytest.mark.parametrize(
    "moment", ["on_validation_batch_end", "on_save_checkpoint", "on_train_batch_end", "on_train_end"]
)
def test_a_signal_is_answered_at_the_end_of_the_step(
    moment: str, number: int, restorer, data, make_trainer, tmp_path: Path
) -> None:
    class Stop(Callback):
        sent = False

    def send(self: Stop, trainer: Trainer, *args: object) -> None:
        if trainer.global_step >= 5 and not self.sent:
            self.sent = True
            os.kill(os.getpid(), number)

    setattr(Stop, moment, send)
    before = [signal.getsignal(n) for n in STOP_SIGNALS]
    trainer = make_trainer(Stop(), LastCheckpoint(every_n_steps=5))
    with pytest.raises(Interrupted, match=f"Stopped by {signal.Signals(number).name} at step .*; saved") as error:
        trainer.fit(restorer, data)
    step = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert step == (10 if moment == "on_train_end" else 5)  # no further step is made
    assert f"at step {step};" in str(error.value)
    assert exit_code(error.value) == 128 + number
    assert [signal.getsignal(n) for n in STOP_SIGNALS] == before


def test_a_checkpoint_comes_after_the_scalars_of_its_step(restorer, data, make_trainer, tmp_path: Path) -> None:
    log = MetricsCSV(str(tmp_path))
    logged: dict[int, set[str]] = {}

    class Look(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: object) -> None:
            module.log("value", 1.0)

        def on_save_checkpoint(self, trainer: Trainer, *args: object) -> None:
            logged[trainer.global_step] = set(log._rows.get(trainer.global_step - 1, {}))  # Lightning counts from 0

    trainer = make_trainer(LastCheckpoint(every_n_steps=3), Look(), logger=log, log_every_n_steps=1)
    trainer.fit(restorer, data)
    assert sorted(logged) == [3, 6, 9, 10]
    assert all("value" in names for names in logged.values())


def test_a_checkpoint_lies_between_optimiser_steps(restorer, data, make_trainer) -> None:
    saved: list[tuple[int, int]] = []

    class Look(Callback):
        def on_save_checkpoint(self, trainer: Trainer, module: object, checkpoint: dict) -> None:
            batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["processed"]
            saved.append((trainer.global_step, batches))

    trainer = make_trainer(LastCheckpoint(every_n_steps=2), Look(), accumulate_grad_batches=3, max_steps=5)
    trainer.fit(restorer, data)
    assert saved == [(2, 6), (4, 12), (5, 15)]


class CountingGrid(PeriodicGrid):
    def __init__(self) -> None:
        super().__init__(1, 1, -1, "val", "grid")
        self.steps: list[int] = []

    def grid(self, trainer: Trainer, *args: object) -> Image.Image:
        self.steps.append(trainer.global_step)
        return Image.new("RGB", (1, 1))


def test_what_counts_steps_goes_on_from_the_step_that_is_restored(restorer, data, make_trainer, tmp_path: Path) -> None:
    """With accumulated batches: the first batch after a resume ends no step."""
    saved = []
    for stops in ([6], [3, 6]):
        shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
        grids, path = [], None
        for stop in stops:
            ema, grid = EMA(0.5), CountingGrid()
            trainer = make_trainer(
                ema,
                grid,
                LastCheckpoint(1),
                max_steps=stop,
                accumulate_grad_batches=2,
                plugins=[AtomicCheckpointIO()],
            )
            trainer.fit(restorer, data, ckpt_path=path)
            grids += grid.steps
            path = tmp_path / "checkpoints" / "last.ckpt"
            saved.append(torch.load(path.with_name("previous.ckpt"), weights_only=True)["global_step"])
        assert grids == [1, 2, 3, 4, 5, 6]
        assert ema.num_updates == 6
    assert saved == [5, 2, 5]  # no checkpoint was written twice


def test_a_run_stops_at_the_save_behind_a_rename(restorer, data, make_trainer, tmp_path: Path) -> None:
    folder, other = tmp_path, tmp_path.with_name(f"{tmp_path.name}_renamed")

    class Rename(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
            if trainer.global_step == 5:
                os.rename(folder, other)  # noqa: PTH104

    own = LastCheckpoint(3), MetricsCSV(str(folder))
    trainer = make_trainer(Rename(), own[0], plugins=[AtomicCheckpointIO()], logger=own[1])
    with held(folder), pytest.raises(FolderGoneError) as error:
        trainer.fit(restorer, data)
    assert trainer.global_step == 6
    assert f"{folder} was renamed to {other}" in str(error.value)
    assert f"continue from step 3 with python train.py resume={other}" in str(error.value)
    assert not folder.exists()
