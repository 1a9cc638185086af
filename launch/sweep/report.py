"""The table that ends a sweep: its jobs, how each ended, and their test metrics."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from files.words import count
from launch.errors import UserError
from launch.metrics_csv import last_values
from launch.names import NOT_IN_NAMES
from launch.record_files import DamagedRecordError, passed_over, read_metrics
from launch.results import Result, print_table, varying, write_csv
from launch.run_folder import RunFolder, readable_record
from launch.sweep.jobs import LOG_NAME, SweepJob, jobs_of
from launch.sweep.search import continued
from launch.threads import note_choice

SEEDS = ("seed",)  # the terminal's table gives means over them
CSV_NAME = "results.csv"
WIDE = 1000  # columns where the output is no terminal: nothing is cut


def status(job: SweepJob) -> str:
    """Say how a job stands.

    Returns:
        ``finished``, ``running``, ``failed`` or ``interrupted``.
    """
    if job.finished:
        return "finished"
    if job.run.is_locked():
        return "running"
    return "failed" if job.failed else "interrupted"


@contextmanager
def sweep_reported(hydra: DictConfig) -> Iterator[list[str]]:
    """Hold the folder of a sweep, and print and write its results at the end, however it ends.

    Args:
        hydra: How the sweep runs: see ``checked_sweep``.

    Yields:
        Further overrides for Hydra.

    Raises:
        UserError: Another process runs the sweep.
    """
    sweep = Path(hydra.sweep.dir).resolve()
    if RunFolder(sweep).is_locked():
        raise UserError(
            f"{sweep} is being run by another process: wait for it, or choose another name with sweep=NAME."
        )
    note_choice()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra hands a job's error on instead of printing and ending
    with RunFolder(sweep).locked():
        try:
            yield continued(hydra.sweeper, sweep)
        finally:
            report(sweep)


def report(sweep: Path) -> None:
    """Print how the jobs of a sweep stand and what they measured, and write ``results.csv``."""
    jobs = jobs_of(sweep)
    if not jobs:
        return
    choices = {job.run.path: _choices(job) for job in jobs}
    keys = varying(choices.values())
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=WIDE, highlight=False)
    states = {job.run.path: status(job) for job in jobs}
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states.values()).items())
    optimized = dict.fromkeys(m for job in jobs if (m := _optimized_metric(job)))
    table = Table(title=f"sweep of {count(len(jobs), 'job')}: {counts}")
    numbers = ("job", "step", "starts", *optimized)
    for column in ("job", *keys, "status", "step", "starts", *optimized):
        table.add_column(column, justify="right" if column in numbers else "left")
    for job in jobs:
        cells = [_short(choices[job.run.path].get(key, "")) for key in keys]
        values = _logged(job) if job.finished else {}
        step = (readable_record(job.run) or {}).get("step")
        table.add_row(
            str(job.number),
            *cells,
            states[job.run.path],
            f"{step:,}" if isinstance(step, int) else "",
            str(len(job.attempts)),
            *(f"{values[metric]:.4g}" if metric in values else "" for metric in optimized),
        )
    console.print(table)
    for job in jobs:
        if states[job.run.path] == "failed":
            log = job.run.path / LOG_NAME
            console.print(f"#{job.number} failed: {job.reason} ({log})", soft_wrap=True, markup=False)

    done = [(job, metrics) for job in jobs if job.finished and (metrics := _metrics(job)) is not None]
    if not done:
        return
    results = [Result(job.run.path.name, str(job.run.path), choices[job.run.path], metrics) for job, metrics in done]
    path = sweep / CSV_NAME
    write_csv(results, (), path)
    print_table([replace(result, run=sweep.name, path=str(sweep)) for result in results], SEEDS, path, title="test")


def _short(value: str) -> str:
    """Write a drawn number with four digits."""
    try:
        return value if len(value) < 8 else f"{float(value):.4g}"
    except ValueError:
        return value


def _optimized_metric(job: SweepJob) -> str | None:
    try:
        return job.run.config().get("optimized_metric") if readable_record(job.run) else None
    except UserError as error:
        passed_over(str(job.run.path), error)
        return None


def _metrics(job: SweepJob) -> dict[str, float] | None:
    try:
        return read_metrics(job.run.path / "metrics.json")["metrics"]
    except DamagedRecordError as error:
        passed_over(str(job.run.path), error)
        return None


def _logged(job: SweepJob) -> dict[str, float]:
    try:
        return last_values(job.run.path)
    except DamagedRecordError as error:
        passed_over(str(job.run.path), error)
        return {}


def _choices(job: SweepJob) -> dict[str, str]:
    pairs = (override.partition("=")[::2] for override in job.overrides)
    return {key: value for key, value in pairs if key not in NOT_IN_NAMES}
