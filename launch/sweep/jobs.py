"""A multirun: each job is a process of its own in a folder of its own, done once, and resumed where it was interrupted.

A process of its own costs a job the seconds of its start, and buys what a sweep needs: a crash, a killed rank or a full
memory ends that job alone; the ranks of a job start like those of a single run; a GPU is free again when its job ends.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from launch.command_line import as_given
from launch.compose import quoted
from launch.data_check import KEY as DATA_CHANGED
from launch.errors import JobFailedError, UserError
from launch.metrics_csv import last_values
from launch.names import swept_and_fixed
from launch.output import say_line
from launch.record import now
from launch.record_files import DamagedRecordError, passed_over, read_json
from launch.run_folder import RunFolder, identity, is_main_process, readable_record, write_json
from launch.sweep.gpus import one_free_gpu
from launch.sweep.processes import Children, program
from launch.threads import job_threads

RECORD_NAME = "job.json"
LOG_NAME = "train.log"


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep.

    Attributes:
        number: Its number in the sweep.
        overrides: What the job is, as in the run's record.
    """

    number: int
    run: RunFolder
    overrides: list[str]

    @property
    def record_path(self) -> Path:
        """The file that says how often the job was started, and how that ended."""
        return self.run.path / RECORD_NAME

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """Starts of the job: when, until when, and the exit code; None while it runs, or where nobody was left to note it."""
        if not self.record_path.exists():
            return []
        try:
            return list(_job_record(self.record_path)["attempts"])
        except DamagedRecordError as error:
            passed_over(f"the record of job {self.number}", error)
            return []

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to do."""
        record = readable_record(self.run) or {}
        return bool(record.get("finished")) and (self.run.path / "metrics.json").exists()

    @property
    def failed(self) -> bool:
        """Whether the last start ended with an error: not with a signal, which is an interruption."""
        attempts = self.attempts
        code = attempts[-1].get("exit_code") if attempts else None
        return not self.finished and code is not None and 0 < code < 128

    @property
    def reason(self) -> str:
        """The last line of the job's log: what an expected error says, or the end of a traceback."""
        path = self.run.path / LOG_NAME
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def write(self, attempts: list[dict[str, Any]]) -> None:
        """Keep how often the job was started."""
        write_json(self.record_path, {"number": self.number, "overrides": self.overrides, "attempts": attempts})


def jobs_of(sweep: Path) -> list[SweepJob]:
    """Return the jobs of a sweep that were started at any time.

    Returns:
        The jobs by number.
    """
    found = []
    for path in sweep.glob(f"*/{RECORD_NAME}"):
        try:
            content = _job_record(path)
        except DamagedRecordError as error:
            passed_over(str(path.parent), error)
            continue
        found.append(SweepJob(content["number"], RunFolder(path.parent), content["overrides"]))
    return sorted(found, key=lambda job: (job.number, job.run.path.name))


def _job_record(path: Path) -> dict[str, Any]:
    content = read_json(path)
    number, overrides, attempts = (content.get(key) for key in ("number", "overrides", "attempts"))
    if not isinstance(number, int) or not _all_are(str, overrides) or not _all_are(dict, attempts):
        raise DamagedRecordError(path, "it is no record of a job")
    if not all(isinstance(attempt.get("exit_code"), int | None) for attempt in content["attempts"]):
        raise DamagedRecordError(path, "an exit code is no number")
    return content


def _all_are(kind: type, values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def run_job(config: DictConfig) -> float | None:
    """Do one job of a multirun, unless it is done, and return what a search looks at.

    Args:
        config: The job's config, as Hydra composed it.

    Returns:
        The last value of ``optimized_metric``, or None where the config names none.

    Raises:
        JobFailedError: The job ended with an error. After a signal this process ends, and with it the sweep.
    """
    hydra = HydraConfig.get()
    overrides = as_given(hydra.overrides.task)
    this_time = [override for override in overrides if override.startswith(f"{DATA_CHANGED}=")]
    job = _job(Path(hydra.runtime.output_dir), hydra.job.num, identity(overrides))
    swept, fixed = swept_and_fixed(overrides)
    name = f"#{job.number} {' '.join(swept or fixed)}"
    if job.finished:
        say_line(f"{name}: finished before, not run again ({job.run.path})")
        return optimized_value(job, config.optimized_metric)
    say_line(f"{name}: {'resumed' if job.run.checkpoint.exists() else 'started'} in {job.run.path}")
    devices = config.trainer.devices
    threads = job_threads(job.run, ranks=devices if isinstance(devices, int) and devices > 0 else 1)
    with one_free_gpu(config.trainer) as visible:
        code, stopped_by = _run(job, [*train_command(job), *this_time], {**visible, **threads})
    if stopped_by is not None:
        say_line(f"{name}: stopped by {signal.Signals(stopped_by).name}")
        sys.exit(128 + stopped_by)
    if code != 0:
        raise JobFailedError(f"{name} ended with exit code {code}: {job.reason} ({job.run.path / LOG_NAME})")
    return optimized_value(job, config.optimized_metric)


def train_command(job: SweepJob) -> list[str]:
    """Return the command that begins a job in its folder, or continues it."""
    return [*program("train"), *job.overrides, "resume=auto", f"hydra.run.dir={quoted(job.run.path)}"]


def _job(folder: Path, number: int, overrides: list[str]) -> SweepJob:
    """Find a job that the sweep knows under another number, as after a change of the grid, else take Hydra's folder."""
    for known in jobs_of(folder.parent):
        if known.overrides == overrides:
            if known.run.path != folder and not any(folder.iterdir()):
                folder.rmdir()  # Hydra has made it
            return known
    return SweepJob(number, RunFolder(folder), overrides)


def optimized_value(job: SweepJob, metric: str | None) -> float | None:
    """Return what a search looks at.

    Args:
        job: A finished job.
        metric: Name of a logged scalar, such as ``val/psnr/sample``, or None.

    Returns:
        Its last value, or None for no metric.

    Raises:
        UserError: The run has not logged it.
    """
    if metric is None:
        return None
    values = last_values(job.run.path)
    if metric not in values:
        known = ", ".join(name for name in values if name.startswith("val/")) or "none"
        raise UserError(f"optimized_metric={metric} was not logged in {job.run.path}: choose one of {known}.")
    return values[metric]


def _run(job: SweepJob, command: Sequence[str], variables: Mapping[str, str]) -> tuple[int, int | None]:
    """Run a job's process, also shown on this terminal; return its exit code and the signal to stop at, if any."""
    children = Children()
    with children.handed_on():
        code = run_attempt(job, command, variables, children, f"#{job.number}")
    children.call_previous()
    return code, children.stopped_by


def run_attempt(
    job: SweepJob, command: Sequence[str], variables: Mapping[str, str], children: Children, label: str | None
) -> int:
    """Run a job's process with its log in the run folder, and note the start and how it ended; see ``Children.run``."""
    main = is_main_process()
    attempts = [*job.attempts, {"started": now(), "ended": None, "exit_code": None}]
    if main:
        job.write(attempts)
    log_path = job.run.path / (LOG_NAME if main else f"train.{os.environ.get('SLURM_PROCID')}.log")
    code = children.run(command, log_path, variables, label)
    attempts[-1] |= {"ended": now(), "exit_code": code}
    if main:
        job.write(attempts)
    return code
