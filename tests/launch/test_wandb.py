"""Weights & Biases and TensorBoard: what is really written in offline mode, read back from the files."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from helpers import composed, read_json, tiny, train_here
from PIL import Image
from processes import Run
from wandb_files import WandbRun, offline_runs

from callbacks.checkpoint import Interrupted
from launch.commands.train import train
from launch.errors import UserError
from launch.loggers import build_loggers
from launch.run_folder import RunFolder, identity
from lightning_modules import MeanFlow

STEPS = 6
OFFLINE = ["experiment=meanflow_dit", "logger=wandb", "logger.offline=true"]
LONGER = [
    f"trainer.max_steps={STEPS}", "callbacks.checkpoint.every_n_steps=2", "callbacks.image_grid.every_n_steps=2",
    "callbacks.calibration=null", "trainer.val_check_interval=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _not_called(calls: list[bytes]) -> Iterator[None]:
    yield
    assert not calls


@pytest.fixture(scope="module", autouse=True)
def calls() -> Iterator[list[bytes]]:
    """Stand where W&B's server would be, and keep what it is sent; an offline run must not call."""
    patch, heard = pytest.MonkeyPatch(), []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            with suppress(OSError):  # the fixture closes it
                while True:
                    with listener.accept()[0] as connection:
                        request = connection.recv(1000)
                        if b"HTTP" in request:  # other programs of the machine try ports too
                            heard.append(request)

        threading.Thread(target=listen, daemon=True).start()
        patch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        yield heard
    patch.undo()


def fail_at(step: int, error: Exception | None, patch: pytest.MonkeyPatch) -> None:
    """Raise an error in a step, or get SIGTERM."""
    loss = MeanFlow.loss

    def failing(module: MeanFlow, *arguments: Any) -> Any:
        if module.global_step == step:
            if error is not None:
                raise error
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(module, *arguments)

    patch.setattr(MeanFlow, "loss", failing)


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A sweep's job that failed at step 5 and continued from step 4 in a folder that was moved meanwhile."""
    overrides = [*OFFLINE, *LONGER]
    folder = tmp_path_factory.mktemp("first") / "sweeps" / "rates" / "3_seed=1"
    with pytest.MonkeyPatch.context() as patch:
        fail_at(5, RuntimeError("a fault in the middle"), patch)
        with pytest.raises(RuntimeError, match="a fault in the middle"):
            train_here(folder, *overrides)
    moved = tmp_path_factory.mktemp("second") / "sweeps" / "rates" / "3_seed=1"
    moved.parent.mkdir(parents=True)
    folder.rename(moved)
    arguments = [*tiny("meanflow_dit"), *overrides]
    config = composed(moved, arguments)
    config.resume = str(moved)
    run = RunFolder(moved)
    train(run, config, identity(arguments))
    return run


@pytest.fixture(scope="module")
def parts(resumed: RunFolder) -> list[WandbRun]:
    return offline_runs(resumed.path)


def test_a_resumed_run_is_the_same_run(resumed: RunFolder, parts: list[WandbRun]) -> None:
    assert len(parts) == 2
    kept = read_json(resumed.path / "wandb.json")
    for part in parts:
        assert part.run.run_id == kept["id"] == part.folder.name.rpartition("-")[2]
        assert part.run.project == kept["project"] == "triptych"
        assert part.run.resume
    assert parts[0].run.start_time.ToSeconds() <= parts[1].run.start_time.ToSeconds()  # the order of wandb sync


def test_a_failure_ends_the_run_with_its_code(parts: list[WandbRun]) -> None:
    assert [part.exit_code for part in parts] == [1, 0]


def test_jobs_of_a_sweep_are_one_group(parts: list[WandbRun]) -> None:
    for part in parts:
        assert part.run.run_group == "rates"
        assert part.run.display_name == "meanflow_dit 3_seed=1"
        assert part.run.job_type == "meanflow_dit"
        assert list(part.run.tags) == ["digits"]


def test_the_axis_is_the_optimiser_step(resumed: RunFolder, parts: list[WandbRun]) -> None:
    for part in parts:
        assert part.step_metrics["*"] == "trainer/global_step"
    first, second = parts
    assert [step for step, _ in first.series("train/loss")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in second.series("train/loss")] == [5, 6]  # step 5 again, from the checkpoint of step 4
    assert [step for step, _ in first.series("val/psnr/mean")] == [1, 2, 3, 4, 5]
    assert [step for step, _ in second.series("val/psnr/mean")] == [5, 6]
    assert first.series("train/loss")[4][1] == second.series("train/loss")[0][1]
    assert second.series("test/psnr/mean")[0][0] == STEPS
    rows = (resumed.path / "metrics.csv").read_text().splitlines()
    column = rows[0].split(",").index("train/loss")
    assert [row.split(",")[0] for row in rows[1:] if row.split(",")[column]] == ["1", "2", "3", "4", "5", "6"]


def test_grids_are_there_as_files(parts: list[WandbRun]) -> None:
    expected = [("restoration", [2, 4]), ("restoration", [6])]
    for part, (key, steps) in zip(parts, expected, strict=True):
        series = part.series(f"images/{key}")
        assert [step for step, _ in series] == steps
        for _, value in series:
            for name in value["filenames"]:
                Image.open(part.folder / "files" / name).verify()
    ((step, test),) = parts[1].series("images/test")
    assert step == STEPS
    Image.open(parts[1].folder / "files" / test["filenames"][0]).verify()


def test_config_is_complete_and_resolved(resumed: RunFolder, parts: list[WandbRun]) -> None:
    saved = resumed.config()
    config = parts[1].config
    assert config.keys() >= {str(key) for key in saved if key != "hydra"}
    assert config["module"]["network"]["dim"] == config["network"]["dim"] == 32
    assert config["module"]["total_steps"] == STEPS
    assert "${" not in str(config)
    assert config["run"]["data"]["fingerprint"] == resumed.record["data"]["fingerprint"]
    assert config["run"]["resumed_at_steps"] == [4]
    assert config["test_record"]["weights"] == "ema"


def test_the_result_is_in_the_summary_and_one_table(resumed: RunFolder, parts: list[WandbRun]) -> None:
    metrics = read_json(resumed.path / "metrics.json")["metrics"]
    last = parts[1]
    assert {name: last.summary[f"test/{name}"] for name in metrics} == pytest.approx(metrics)
    ((step, table),) = last.series("test/table")
    assert step == STEPS
    for file in last.artifact_files:  # what wandb sync needs beside the files lies in the run folder too
        assert file.is_file()
        assert file.is_relative_to(resumed.path)
    content = read_json(last.folder / "files" / table["path"])
    psnr = content["columns"].index("PSNR, dB")
    assert {row[0]: row[psnr] for row in content["data"]} == pytest.approx(
        {name.split("/")[1]: value for name, value in metrics.items() if name.startswith("psnr/")}
    )


def test_the_summary_keeps_the_better_end_of_a_validation_metric(parts: list[WandbRun]) -> None:
    part = parts[0]
    for name, best in (("val/psnr/mean", max), ("val/mse/mean", min)):
        values = [value for _, value in part.series(name)]
        assert part.summary[name] == {best.__name__: best(values), "last": values[-1]}


def test_sigterm_marks_the_run_as_preempted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_at(1, None, monkeypatch)
    with pytest.raises(Interrupted):
        train_here(tmp_path / "run", *OFFLINE)
    (part,) = offline_runs(tmp_path / "run")
    assert part.exit_code == 128 + signal.SIGTERM
    assert part.preempting
    assert not part.run.run_group


def test_a_missing_login_is_one_sentence_and_no_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def __getattr__(self, name: str) -> Any:
            raise AssertionError("a key was asked for")

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setattr(sys, "stdin", Terminal())
    config = composed(tmp_path / "run", [*tiny("meanflow_dit"), "experiment=meanflow_dit", "logger=wandb"])
    with pytest.raises(
        UserError, match=r"log in with wandb login, or keep the run on this machine with logger.offline"
    ):
        build_loggers(config, RunFolder(tmp_path / "run"), None)
    assert isinstance(sys.stdin, Terminal)
    assert not (tmp_path / "run" / "wandb.json").exists()


def test_a_damaged_record_is_one_sentence(tmp_path: Path) -> None:
    config = composed(tmp_path / "run", [*tiny("meanflow_dit"), *OFFLINE])
    (tmp_path / "run" / "wandb.json").write_text("{")
    with pytest.raises(UserError, match=r"wandb.json is damaged .*: remove it"):
        build_loggers(config, RunFolder(tmp_path / "run"), None)


def test_wandb_is_not_imported_where_it_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import sys, train; sys.exit('wandb' in sys.modules)")
    Run(tmp_path / "log", str(tmp_path / "script.py")).finished()


def test_tensorboard_gets_scalars_and_grids(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train_here(tmp_path / "run", "experiment=meanflow_dit", "logger=tensorboard", "callbacks.calibration=null")
    events = event_accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]
    assert [event.step for event in events.Images("images/test")] == [2]
