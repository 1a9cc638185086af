"""Best checkpoints, milestones and early stopping: by a metric of the validation, and the same after a resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from lightning import Callback, LightningModule, Trainer

from callbacks import EMA, EarlyStop, KeptCheckpoints, LastCheckpoint
from callbacks.checkpoint import AtomicCheckpointIO
from callbacks.measuring import SetupError
from files.whole import second_name

VALUES = {2: 1.0, 4: 3.0, 6: float("nan"), 8: 2.0, 10: 4.0, 12: 0.0, 14: 0.0, 16: 3.9, 18: 0.0, 20: 0.0}


class Scripted(Callback):
    """Logs ``val/psnr/mean`` as written for the step."""

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("val/psnr/mean", VALUES.get(trainer.global_step, 0.0))


class Stop(BaseException):
    """A kill."""


class Kill(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            raise Stop


@pytest.fixture
def fit(restorer, data, make_trainer, tmp_path: Path):
    """Train for some steps with a validation at every second one, from a checkpoint where one is there."""

    def run(*callbacks: Callback, kill: int | None = None, **options: object) -> Trainer:
        path = tmp_path / "checkpoints" / "last.ckpt"
        path = path if path.exists() else path.with_name("previous.ckpt")
        options = {"max_steps": 20, "val_check_interval": 2, "plugins": [AtomicCheckpointIO()]} | options
        killer = [Kill(kill)] if kill else []
        trainer = make_trainer(Scripted(), EMA(0.5), LastCheckpoint(3), *callbacks, *killer, **options)
        try:
            trainer.fit(restorer, data, ckpt_path=path if path.exists() else None)
        except Stop:
            assert kill
        return trainer

    return run


def kept(folder: Path) -> dict[str, int]:
    """The steps inside of what lies beside last and previous, by file name."""
    files = [path for path in (folder / "checkpoints").glob("*.ckpt") if path.stem not in ("last", "previous")]
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in files}


@pytest.mark.parametrize("kill", [None, 9, 11, 17])
def test_the_best_and_milestones_are_kept_also_by_a_run_that_was_killed(fit, tmp_path: Path, kill: int | None) -> None:
    def keeper() -> KeptCheckpoints:
        return KeptCheckpoints("val/psnr/mean", num_best=2, every_n_steps=8)

    fit(keeper(), kill=kill)
    if kill:
        assert max(kept(tmp_path).values()) < kill
        fit(keeper())
    assert kept(tmp_path) == {
        "best.ckpt": 10, "best_00000010.ckpt": 10, "best_00000016.ckpt": 16, "step_00000008.ckpt": 8, "step_00000016.ckpt": 16,
    }  # fmt: skip
    best = json.loads((tmp_path / "checkpoints" / "best.json").read_text())
    assert best["metric"] == "val/psnr/mean"
    assert [(each["step"], each["value"]) for each in best["best"]] == [
        (10, pytest.approx(4.0)),
        (16, pytest.approx(3.9)),
    ]
    # What was kept is the very state that a checkpoint of this step has.
    state = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    batches = state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
    assert (batches["processed"], batches["completed"]) == (10, 9)


def test_a_run_goes_on_from_the_checkpoint_before_though_it_is_of_a_kept_step(fit, tmp_path: Path) -> None:
    fit(KeptCheckpoints("val/psnr/mean", every_n_steps=3), kill=11)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last.with_name("previous.ckpt"), weights_only=True)["global_step"] == 9
    last.unlink()
    fit(KeptCheckpoints("val/psnr/mean", every_n_steps=3))
    assert kept(tmp_path).items() >= {"best.ckpt": 10, "step_00000009.ckpt": 9, "step_00000018.ckpt": 18}.items()


@pytest.mark.parametrize("kill", [None, 7, 13])
def test_a_training_that_has_stopped_improving_ends_also_after_a_kill(fit, tmp_path: Path, kill: int | None) -> None:
    stops = [EarlyStop("val/psnr/mean", patience=2, min_delta=0.5) for _ in range(2)]
    trainer = fit(stops[0], kill=kill)
    stop = stops[0]
    if kill:
        trainer, stop = fit(stops[1]), stops[1]
    assert trainer.global_step == 14
    assert (stop.best, stop.best_step, stop.num_without) == (4.0, 10, 2)
    assert "val/psnr/mean has not been better than 4 of step 10 for 2 validations" in stop.reason
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 14
    # With more patience, which is that of the new settings, it goes on.
    assert fit(EarlyStop("val/psnr/mean", patience=5)).global_step == 20


def test_another_metric_begins_anew(fit, tmp_path: Path) -> None:
    fit(EarlyStop("val/psnr/mean", patience=9), KeptCheckpoints("val/psnr/mean"), max_steps=4)
    path = tmp_path / "checkpoints" / "last.ckpt"
    with pytest.raises(
        SetupError, match=r"metric=val/loss would take the place of the best by val/psnr/mean, which .*json"
    ):
        fit(KeptCheckpoints("val/loss"))
    assert kept(tmp_path) == {"best.ckpt": 4, "best_00000004.ckpt": 4}
    state = torch.load(path, weights_only=True)["callbacks"]
    stop, keeper = EarlyStop("val/loss"), KeptCheckpoints("val/loss")
    stop.load_state_dict(state["EarlyStop"])
    keeper.load_state_dict(state["KeptCheckpoints"])
    assert (stop.judged_step, stop.best, keeper.best) == (-1, float("inf"), [])


def test_a_metric_that_is_not_measured_is_told_before_the_first_step(fit, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"metric=val/psnr/maen is not measured .*: did you mean val/psnr/mean\?"):
        fit(KeptCheckpoints("val/psnr/maen"), num_sanity_val_steps=1)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(ValueError, match=r"callbacks\.early_stop\.metric=val/spread/sample: neither side"):
        EarlyStop("val/spread/sample")
    assert EarlyStop("val/spread/sample", better="higher").sign == 1
    assert KeptCheckpoints("val/loss").sign == -1


def test_nothing_is_kept_where_nothing_writes_checkpoints(restorer, data, make_trainer) -> None:
    with pytest.raises(SetupError, match=r"callbacks\.checkpoint writes: put it back"):
        make_trainer(KeptCheckpoints(every_n_steps=2)).fit(restorer, data)


def test_a_second_name_is_whole_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "last.ckpt").write_text("new")
    (tmp_path / "best.ckpt").write_text("old")
    second_name(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").samefile(tmp_path / "last.ckpt")

    def no_links(*args: object) -> None:
        raise PermissionError

    monkeypatch.setattr("os.link", no_links)
    shutil.copy(tmp_path / "last.ckpt", tmp_path / "other.ckpt")
    second_name(tmp_path / "other.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").read_text() == "new"
    assert not (tmp_path / "best.ckpt").samefile(tmp_path / "other.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", "last.ckpt", "other.ckpt"]
