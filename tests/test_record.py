"""The record log: its lines say what the runs recorded, and are added where a task is measured as it says and reached."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import ROOT, read_json, tiny
from omegaconf import OmegaConf
from processes import Run

from generative.metrics.catalogue import listed, split_name
from launch.build import build_datamodule
from launch.compose import compose_config
from launch.errors import RunFailedError, UserError, reported
from launch.record import git_revision
from launch.results import Result, Row
from launch.run_folder import RunFolder, write_json

sys.path.append(str(ROOT / "benchmarks"))
import record
from record_tasks import TASKS, Part, Task, check_conditions, check_reached

SMALL = ["experiment=meanflow_dit", *tiny("meanflow_dit"), "callbacks.calibration=null"]


@pytest.fixture(scope="module")
def task() -> Task:
    config = compose_config(SMALL)
    conditions = {"weights": "ema", "evaluation.num_images": 10, "sampling.num_steps": 1}
    return Task(
        tuple(SMALL),
        {"psnr/mean": 1.0, "mse/sample": 4.0},
        build_datamodule(config).record()["fingerprints"],
        conditions,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[record.Measured]:
    """A real training with the command line of a user, in a process of its own; and one that went a little better."""
    folder = tmp_path_factory.mktemp("records")

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        process = Run(folder / "log", Path(command[1]).name, *command[2:]).process
        process.join()
        return SimpleNamespace(returncode=process.exitcode)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "subprocess", SimpleNamespace(run=run))
        with pytest.raises(SystemExit, match="2"):
            record.trained(folder / "refused", [*SMALL, "optimizer.lr=-1"])
        first = record.trained(folder / "run", SMALL)
    shutil.copytree(first.run.path, folder / "better")
    result = read_json(first.run.path / "metrics.json")
    write_json(folder / "better" / "metrics.json", result | {"metrics": result["metrics"] | {"psnr/mean": 7.0}})
    return [first, record.Measured(RunFolder(folder / "better"), first.seconds + 100, 50.0)]


@pytest.fixture
def page(task: Task, measured: list[record.Measured], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page with one line, and a log whose task has been measured already."""
    runs = {f"seed_{seed}": each for seed, each in enumerate(measured)}
    monkeypatch.setitem(TASKS, "small", task)
    monkeypatch.setattr(record, "trained", lambda folder, arguments: runs[folder.name])
    path = tmp_path / "records.md"
    path.write_text(record.page("| an earlier line |\n"))
    monkeypatch.setattr(record, "PAGE", path)
    return path


def test_a_line_says_what_the_runs_recorded(page: Path, measured: list[record.Measured]) -> None:
    record.main(["small", "--seeds", "2", "--change", "one | two", "optimizer.lr=1e-3"])
    earlier, line = record.lines_of(page.read_text()).splitlines()
    assert earlier == "| an earlier line |"
    date, name, quality, seconds, cpu_seconds, change, machine, commit, seeds = (
        cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]
    )
    run = read_json(measured[0].run.path / "run.json")
    values = [read_json(each.run.path / "metrics.json")["metrics"]["psnr/mean"] for each in measured]
    assert date == run["started"][:10]
    assert name == "`small`"
    assert quality.startswith(f"PSNR mean {fmean(values):.2f} ± {stdev(values):.2f} dB, MSE sample 0.")
    assert seconds == f"{measured[0].seconds + 50:.0f} ± 71"
    assert measured[0].seconds > 0
    assert cpu_seconds.endswith(" ± 35")
    assert change == "one | two (`optimizer.lr=1e-3`)"
    assert run["hardware"]["processor"] in machine
    assert commit.startswith(str(git_revision())[:8])
    assert ("modified" in commit) == ("-" in str(git_revision()))
    assert seeds == "2"


@pytest.mark.parametrize(
    ("change", "error"),
    [({"targets": {"psnr/mean": 60.0}}, RunFailedError), ({"conditions": {"weights": "raw"}}, UserError)],
)
def test_what_is_not_the_task_or_not_reached_adds_nothing(
    change: dict[str, Any], error: type[Exception], page: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASKS, "small", replace(task, **change))
    before = page.read_text()
    with pytest.raises(error, match="nothing is recorded"):
        record.main(["small", "--change", "none"])
    record.main(["small", "--change", "none", "--quick"])
    assert page.read_text() == before


def test_figures_must_be_reached_by_the_mean_on_the_better_side(task: Task) -> None:
    row = Row(
        "", {}, [Result("", "", {}, {"psnr/mean": value, "mse/sample": 0.1}, seed=i) for i, value in ((0, 5), (1, 7))]
    )
    check_reached(replace(task, targets={"psnr/mean": 6.0, "mse/sample": 0.1}), row)
    for targets, said in (
        ({"psnr/mean": 6.001}, "PSNR, dB of mean is 6.0000 and not 6.001"),
        ({"mse/sample": 0.0999}, "MSE of sample is 0.1"),
        ({"ssim/mean": 0.1}, "SSIM of mean was not measured"),
    ):
        with pytest.raises(RunFailedError, match=said):
            check_reached(replace(task, targets=targets), row)


def test_figures_must_be_of_the_task(task: Task) -> None:
    result = {"data": {"fingerprints": task.fingerprints}, "evaluation": {"num_images": 10}}
    task = replace(task, conditions={"evaluation.num_images": 10})
    check_conditions(task, result)
    for key, value, said in (
        ("evaluation", {"num_images": 9}, "evaluation.num_images is 9 and must be 10"),
        ("evaluation", {}, "evaluation.num_images is None"),
        ("data", {"fingerprints": {"test": "another"}}, "data.fingerprints"),
    ):
        with pytest.raises(UserError, match=said):
            check_conditions(task, result | {key: value})


def test_code_that_changes_meanwhile_is_refused(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "git_revision", lambda: "another")
    with pytest.raises(UserError, match="was changed"):
        record.main(["small", "--change", "none"])
    monkeypatch.setattr(record, "git_revision", lambda: "another-modified")
    with pytest.raises(UserError, match="--change"):
        record.main(["small"])
    monkeypatch.setattr(record, "git_revision", lambda: None)
    with pytest.raises(UserError, match="clone"):
        record.main(["small"])


@pytest.mark.parametrize("override", ["init=RUN", "init.run=RUN", "space=RUN"])
def test_what_another_run_has_learnt_is_no_part_of_a_record(page: Path, override: str) -> None:
    with pytest.raises(UserError, match=f"{override} uses another run, whose seconds a record does not count"):
        record.main(["small", override])


def test_seconds_of_a_tokenizer_are_added(measured: list[record.Measured], tmp_path: Path) -> None:
    part, machine = Part("tokenizer", "vqgan_scenes", counts=True), {"device": "cpu", "threads": 2}
    run = RunFolder(tmp_path)
    times = {"started": "2026-01-01T23:59:50+00:00", "ended": "2026-01-02T00:10:00+00:00"}
    whole = {**times, "finished": True, "resumed_at_steps": [], "hardware": machine}
    write_json(run.record_path, whole)
    assert record.seconds_of(part, run, machine) == 610
    for change in ({"finished": False}, {"resumed_at_steps": [4]}, {"hardware": {**machine, "threads": 1}}):
        write_json(run.record_path, whole | change)
        with pytest.raises(UserError, match=f"tokenizer={tmp_path} tells no seconds"):
            record.seconds_of(part, run, machine)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "is no task"),
        (["mnist"], "did you mean mnist_mixed"),
        (["mnist_mixed", "--seeds", "0"], "at least 1"),
        (["mnist_mixed", "--seeds", "many"], "many"),
        (["mnist_mixed", "--what"], "--what"),
        (["mnist_mixed", "seed=1"], "seed=1"),
        (["mnist_mixed", "experiment=ddpm_scenes"], "experiment"),
        (["mnist_mixed", "DIR"], "DIR"),
        (["mnist_mixed", "--change", "x", "optimizr=muon"], "optimizr"),
        (["scenes_labels", "--change", "x", "classifier=nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_told_in_a_sentence(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "trained", lambda *_: pytest.fail("a training was started"))
    with pytest.raises(SystemExit, match="2"), reported():
        record.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_the_page_is_that_of_the_tasks() -> None:
    """Else: the script writes it anew with its next line."""
    text = (ROOT / "benchmarks" / "records.md").read_text()
    assert text == record.page(record.lines_of(text))
    empty = record.page("")
    assert empty.endswith("taken yet.\n")
    assert not record.lines_of(empty)


@pytest.mark.parametrize("task", [task for name, task in TASKS.items() if name != "small"])
def test_tasks_are_what_their_experiments_measure(task: Task) -> None:
    config = compose_config(list(task.arguments))
    assert all(split_name(name)[0] in listed() for name in task.targets)
    places = {"label_accuracy": "callbacks.label_accuracy", "sampling": "sampler"}
    for key, value in task.conditions.items():
        first, _, rest = key.partition(".")
        place = f"{places.get(first, first)}.{rest}".rstrip(".")
        if first in (*places, "degradation", "evaluation_seed") and rest != "assisted":
            assert OmegaConf.select(config, place) == value, key
    if task.part:
        assert task.part.key in config
        compose_config([f"experiment={task.part.experiment}"])
