"""Reads run folders: what they measured, and which of them have nothing to show and why."""

from __future__ import annotations

import glob
import math
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from generative.metrics.by_image import ImageValues
from launch.by_image_csv import read_by_image
from launch.command_line import run_config
from launch.compose import apply_overrides
from launch.errors import UserError, as_user_error, one_line
from launch.judge import judges_in
from launch.metrics_csv import last_values, read_rows
from launch.paths import is_there, typed_path
from launch.received import checked_overrides
from launch.record import history_of
from launch.record_files import read_metrics
from launch.run_folder import RunFolder
from launch.settings import BEFORE, Settings, earlier_settings, settings_of
from launch.study.record import StudyRun
from launch.sweep.jobs import LOG_NAME, RECORD_NAME, SweepJob
from launch.use.exported import step_of
from launch.use.load import MODEL

BATCH_KEYS = ("data.global_batch_size", "trainer.accumulate_grad_batches")
MARKS = ("run.json", ".hydra/config.yaml", RECORD_NAME, LOG_NAME)  # a folder with one of these is a run's
RESULTS = ("metrics.json", "pictures.json")  # of evaluations
REASON_LENGTH = 300  # characters of an error message
_ERROR = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")  # how the log of a run that failed ends


@dataclass(frozen=True)
class Measured:
    """One evaluation of one run: that of the end of its training, or a later one.

    Attributes:
        folder: Folder of ``metrics.json`` and ``images``: the run's, or one in its ``evaluations``.
        name: Name of the run, which is its experiment's unless it was given one.
        settings: Settings of the evaluation: those of the training with its overrides.
        metrics: Values by ``<metric>/<output>``.
        record: How they were measured.
        run_record: Content of ``run.json``.
        planned: What a study has planned for the run, where it is one of its.
        by_image: What each image has added to the means behind ``metrics``; nothing where that was not kept.
    """

    run: RunFolder
    folder: Path
    name: str
    trained: Settings
    settings: Settings
    metrics: dict[str, float]
    record: dict[str, Any]
    run_record: dict[str, Any]
    by_image: dict[str, ImageValues] = field(default_factory=dict)
    planned: StudyRun | None = None

    @cached_property
    def judges(self) -> dict[str, str]:
        """The hash of the network that judged a metric, by the metric's key."""
        return judges_in(self.record)

    @property
    def seed(self) -> int:
        """The seed of the training."""
        return int(self.run_record.get("seed", self.record.get("seed", 0)))

    @property
    def evaluation_seed(self) -> tuple[Any, Any]:
        """The seeds of the module's and of the data's draws in evaluation."""
        return self.record.get("evaluation_seed"), self.record.get("data", {}).get("evaluation_seed")


@dataclass(frozen=True)
class LeftOut:
    """A run folder, or an evaluation, that is in no table.

    Attributes:
        name: Name of the run.
        state: ``running``, ``unfinished``, ``failed``, ``damaged``, ``no metrics`` or ``not used``.
        step: The last logged optimiser step, or None.
        max_steps: Optimiser steps that it was to make, or None.
        reason: What is known about the cause, and what helps.
        last: Its last validation metrics, by name.
    """

    folder: Path
    name: str
    state: str
    step: int | None
    max_steps: int | None
    reason: str
    last: dict[str, float] = field(default_factory=dict)


@dataclass
class Found:
    """What the run folders hold.

    Attributes:
        measured: The evaluations.
        left_out: What cannot be shown.
    """

    runs: list[RunFolder] = field(default_factory=list)
    measured: list[Measured] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def place_of(self, path: Path) -> str:
        """Say where a folder lies among the runs, and nothing of the machine."""
        above = Path(os.path.commonpath([run.path for run in self.runs]))
        root = above.parent if len(self.runs) == 1 else above
        return str(path.relative_to(root)) if path.is_relative_to(root) else path.name


def run_folders(patterns: str) -> list[Path]:
    """Find run folders.

    Args:
        patterns: A folder or a glob pattern, or several with commas between them; ``**`` is any depth. Of a folder that is
            none of a run, those below it are taken.

    Returns:
        The folders, sorted.

    Raises:
        UserError: There is none.
    """
    found: set[Path] = set()
    for pattern in [patterns] if is_there("runs", patterns) else patterns.split(","):
        path = str(typed_path("runs", pattern.strip()))
        named = glob.escape(path) if is_there("runs", path) else path  # its own [1] is no pattern
        matches = [Path(match) for match in glob.glob(named, recursive=True)]  # noqa: PTH207 - also absolute ones
        folders = {path for path in matches if path.is_dir()} | {path.parent for path in matches if path.name in MARKS}
        runs = {path for path in folders if _is_run(path)}
        if not runs:
            runs = {path for folder in folders for path in folder.rglob("*") if path.is_dir() and _is_run(path)}
        if not runs:
            _check_no_export(pattern, folders)
            raise UserError(
                f"runs={pattern}: no run folder matches; name folders that train.py wrote, as in runs='outputs/**'."
            )
        found |= {path.resolve() for path in runs}
    return sorted(found)


def _check_no_export(pattern: str, folders: set[Path]) -> None:
    """Say that exports, and what was measured of them, are not what is compared here."""
    said = "compare.py reads the settings and curves of trainings: python evaluate.py -m run=RUN,EXPORT lays them side by side."
    if any((folder / MODEL).is_file() for folder in folders):
        raise UserError(f"runs={pattern} is an export, not its run; {said}")
    if any(path.name in RESULTS for folder in folders for path in folder.rglob("*.json")):
        raise UserError(f"runs={pattern} holds evaluations without a run, as those of an export are; {said}")


def _is_run(path: Path) -> bool:
    return any((path / mark).is_file() for mark in MARKS)


def read_runs(folders: Sequence[Path]) -> Found:
    """Read run folders with everything in their ``evaluations``."""
    found = Found()
    for path in folders:
        run = RunFolder(path)
        found.runs.append(run)
        try:
            with as_user_error():
                record = run.record
                read_rows(path)  # for the curves of its training
                if not record.get("finished") or not (path / "metrics.json").exists():
                    found.left_out.append(_unfinished(run, record))
        except UserError as error:
            found.left_out.append(LeftOut(path, path.parent.name, "damaged", None, None, one_line(error)))
            continue
        for folder in _evaluations(path):
            try:
                with as_user_error():
                    measured = _measured(run, folder, record)
                    outdated = _outdated(measured)
            except UserError as error:
                found.left_out.append(LeftOut(folder, _name(run, record), "damaged", None, None, one_line(error)))
                continue
            if outdated:
                found.left_out.append(
                    LeftOut(folder, measured.name, "not used", measured.record["step"], None, outdated)
                )
                continue
            found.measured.append(measured)
            if not measured.metrics:
                reason = "it measured nothing, without a label classifier or Inception; only its images are shown"
                found.left_out.append(LeftOut(folder, measured.name, "no metrics", None, None, reason))
    return found


def _evaluations(path: Path) -> list[Path]:
    return [
        file.parent
        for file in [path / "metrics.json", *sorted(path.glob("evaluations/*/metrics.json"))]
        if file.exists()
    ]


def _measured(run: RunFolder, folder: Path, run_record: dict[str, Any]) -> Measured:
    content = read_metrics(folder / "metrics.json")
    record = content["record"]
    config, parts = run_config(run), dict(run_record.get("parts", {}))
    if "init" in run_record:
        parts["init"] = run_record["init"]
    before = {BEFORE: text} if (text := earlier_settings(run_record)) else {}
    trained = settings_of(config, parts) | before
    for key in BATCH_KEYS:
        if not trained.get(key, "1").isdecimal():
            raise UserError(f"its {key}={trained[key]} is no number")
    overrides = [] if folder == run.path else checked_overrides(record.get("overrides"), folder / "metrics.json")
    evaluated = settings_of(apply_overrides(config, run.overrides(), overrides), parts) if overrides else trained
    chosen = {"checkpoint": str(record["checkpoint"])} if "checkpoint" in record else {}
    settings = evaluated | before | chosen
    by_image, metrics = read_by_image(folder), content["metrics"]
    return Measured(run, folder, _name(run, run_record), trained, settings, metrics, record, run_record, by_image)


def _outdated(measured: Measured) -> str:
    """Say why an evaluation is none of the run as it is now, with its settings: it was trained on since. Empty where it is."""
    run, record, step = measured.run, measured.run_record, measured.record.get("step")
    if step is None or "checkpoint" in measured.record:
        return ""
    finished, now = record.get("finished"), record.get("step")
    if not finished and run.checkpoint.exists():  # what an error has ended may stand a little before its last step
        now = step_of(run)
    resumed_at = max((entry["step"] for entry in history_of(record)), default=0)
    again = f"evaluate again with python evaluate.py run={shlex.quote(str(run.path))}"
    if not finished and 0 < step <= resumed_at:
        return f"measured at step {step}, and the run goes on from step {resumed_at}: {again}"
    return "" if now in (None, step) else f"measured at step {step}, the run is at step {now}: {again}"


def _name(run: RunFolder, record: dict[str, Any]) -> str:
    return str(record.get("name", run.path.parent.name))


def _unfinished(run: RunFolder, record: dict[str, Any]) -> LeftOut:
    job = SweepJob(0, run, [])
    if run.is_locked():
        state, reason = "running", "a process writes it now"
    elif record.get("finished"):
        state, reason = "unfinished", f"it has no metrics.json: python evaluate.py run={run.path}"
    elif job.failed if job.record_path.exists() else _ERROR.match(job.reason):
        state, reason = "failed", job.reason[:REASON_LENGTH]
    else:
        state = "unfinished"
        go_on = (
            f"python train.py {shlex.quote(f'resume={run.path}')} continues"
            if run.checkpoint.exists()
            else "it has no checkpoint"
        )
        stopped = record.get("stopped")
        why = (
            f"at step {stopped.get('step')}: {stopped.get('reason')}" if isinstance(stopped, dict) else "before its end"
        )
        reason = f"it stopped {why}; {go_on}"[:REASON_LENGTH]
    logged = last_values(run.path).items()
    last = {name.removeprefix("val/"): value for name, value in logged if name.startswith(("val/", "train/loss"))}
    return LeftOut(run.path, _name(run, record), state, last_step(run.path), _max_steps(run), reason, last)


def _max_steps(run: RunFolder) -> int | None:
    steps = (
        OmegaConf.select(run.config(), "trainer.max_steps") if (run.path / ".hydra" / "config.yaml").exists() else None
    )
    return steps if isinstance(steps, int) else None


def last_step(folder: Path) -> int | None:
    return max((int(row["step"]) for row in read_rows(folder)), default=None)


def logged_curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """Read a logged scalar, such as ``val/<metric>/<output>``, as optimiser steps and finite values over the training."""
    rows = ((row["step"], row.get(name)) for row in read_rows(folder))
    curve = ((int(step), float(value)) for step, value in rows if value)
    return [(step, value) for step, value in curve if math.isfinite(value)]


def newest_first(measured: Sequence[Measured]) -> list[Measured]:
    return sorted(measured, key=lambda each: str(each.record.get("time", "")), reverse=True)
