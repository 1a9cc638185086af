"""Runs a study: times its runs, trains them and evaluates them, some side by side; what is done is not done again."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from launch.errors import JobFailedError, UserError
from launch.output import say_line
from launch.record_files import read_json
from launch.run_folder import RunFolder, identity
from launch.study.plan import Planned, check_parameters, planned_runs, timed
from launch.study.record import BASELINE, CELL, NAME, Study, StudyRun, read_study
from launch.study.settings import StudySettings, check_same, is_same
from launch.sweep.jobs import SweepJob, run_attempt, train_command
from launch.sweep.processes import Children, program
from launch.threads import VARIABLES

ONE_THREAD = dict.fromkeys(VARIABLES, "1")
TIMING_NAME = "timing.json"
WAIT_SECONDS = 0.2

Item = TypeVar("Item")


class StudyRunner:
    """The work on a study in its folder, which is held by ``run``.

    Args:
        settings: The study.

    Attributes:
        planned: Its runs, judges and tokenizers first.
        study: Its record.
    """

    def __init__(self, settings: StudySettings) -> None:
        self.settings = settings
        self.folder = settings.folder
        self.planned = planned_runs(settings)
        self.study = self._begun()
        self._children = Children()
        self._lock = threading.Lock()

    def _begun(self) -> Study:
        """Return the record of the folder, or that of a new study."""
        recorded = read_study(self.folder)
        if recorded is not None and self._has_runs(recorded):
            check_same(dict(recorded.settings), self.settings)
            return recorded
        if recorded is not None and is_same(dict(recorded.settings), self.settings):
            return recorded
        if recorded is None and self.folder.exists() and any(path.name != ".lock" for path in self.folder.iterdir()):
            raise UserError(
                f"{self.folder} holds something else than a study, without {NAME}: choose another folder with name=NAME."
            )
        settings = self.settings
        return Study(
            settings.study, settings.budget_name, tuple(settings.budget.seeds), settings.seconds, settings.record,
            tuple(each.entry for each in self.planned), settings.predictions,
        )  # fmt: skip

    def _has_runs(self, study: Study) -> bool:
        """Say whether a training of a study has made a step: till then it may have other settings."""
        return any(RunFolder(self.folder / run.run).record_path.exists() for run in study.runs)

    def run(self) -> None:
        """Do what is left of the study.

        Raises:
            UserError: Another process runs it, or the budget is too small.
            JobFailedError: A run ended with an error; all that does not need it was done.
        """
        if RunFolder(self.folder).is_locked():
            raise UserError(f"{self.folder} is being run by another process: wait for it, or choose another name=NAME.")
        with RunFolder(self.folder).locked(), self._children.handed_on():
            self._forget_others()
            self.study.write(self.folder)
            before = [each for each in self.planned if each.entry.role not in (CELL, BASELINE)]
            cells = [each for each in self.planned if each.entry.role in (CELL, BASELINE)]
            failures: list[str] = []
            self._time(
                [each for each in self.planned if not each.entry.shared_seconds]
            )  # a budget too small is told now
            for stage in (before, cells):
                self._time(stage)
                check_parameters(self.study.runs)
                failures = self._side_by_side(self._train, stage)
                if stage is before and failures:
                    raise JobFailedError("; ".join(failures))
            trained = [each for each in cells if self._job(each).finished]
            lines = [(each, line) for each in trained for line in each.evaluations]
            failures += self._side_by_side(self._evaluate, lines)
        if failures:
            raise JobFailedError("; ".join(failures))

    def _side_by_side(self, do: Callable[[Item], str | None], items: Sequence[Item]) -> list[str]:
        """Do something to several items at a time.

        Returns:
            What failed. After a signal this process ends, once all of its own have.
        """
        with ThreadPoolExecutor(self.settings.side_by_side) as pool:
            results = pool.map(lambda item: None if self._children.stopped_by else do(item), items)
            failures = [failure for failure in results if failure]
        if (number := self._children.stopped_by) is not None:
            say_line(f"stopped by {signal.Signals(number).name}; the same command continues")
            sys.exit(128 + number)
        return failures

    def _entry(self, planned: Planned) -> StudyRun:
        return next(run for run in self.study.runs if run.run == planned.entry.run)

    def _job(self, planned: Planned) -> SweepJob:
        overrides = planned.command(self._entry(planned), self.settings.budget.validations)
        return SweepJob(self.planned.index(planned), RunFolder(self.folder / planned.entry.run), identity(overrides))

    def _forget_others(self) -> None:
        """Remove what was measured for a study of other settings, of which no training had begun."""
        recorded = read_study(self.folder)
        if recorded is not None and not is_same(dict(recorded.settings), self.settings):
            for run in recorded.runs:
                (self.folder / run.run / TIMING_NAME).unlink(missing_ok=True)

    def _time(self, planned: Sequence[Planned]) -> None:
        """Measure the runs whose steps are not known yet."""
        untimed = [each for each in planned if self._entry(each).steps is None]
        failures = self._side_by_side(self._time_one, untimed)
        if failures:
            raise UserError("; ".join(failures))

    def _time_one(self, planned: Planned) -> str | None:
        folder = self.folder / planned.entry.run
        folder.mkdir(parents=True, exist_ok=True)
        path, log = folder / TIMING_NAME, folder / "timing.log"
        if not path.exists():
            command = [sys.executable, "-m", "launch.study.timing", str(path), *planned.overrides]
            code = self._children.run(command, log, ONE_THREAD)
            if code:
                return (
                    None if self._children.stopped_by else f"{planned.entry.run} cannot be trained: {_last_line(log)}"
                )
        content = read_json(path)
        entry = timed(
            self.settings, planned.entry, content["seconds_per_step"], content["batch_size"], content["parameters"]
        )
        self._keep(entry)
        say_line(f"{entry.run}: {entry.images_per_second:.1f} images/s on one thread, {entry.steps:,} steps")
        return None

    def _keep(self, entry: StudyRun) -> None:
        with self._lock:
            runs = tuple(entry if run.run == entry.run else run for run in self.study.runs)
            self.study = replace(self.study, runs=runs)
            self.study.write(self.folder)

    def _train(self, planned: Planned) -> str | None:
        job = self._job(planned)
        name = planned.entry.run
        if job.finished:
            say_line(f"{name}: finished before, not run again")
            return None
        self._wait_for(job.run)
        say_line(f"{name}: {'resumed' if job.run.checkpoint.exists() else 'started'}")
        code = run_attempt(job, train_command(job), ONE_THREAD, self._children, None)
        return self._ended(name, code, job.run.path / "train.log")

    def _wait_for(self, run: RunFolder) -> None:
        """Wait for the process of a study that was killed: it saves its state before it ends."""
        while run.is_locked() and not self._children.stopped_by:
            time.sleep(WAIT_SECONDS)

    def _evaluate(self, item: tuple[Planned, Sequence[str]]) -> str | None:
        planned, line = item
        path, name = self.folder / planned.entry.run, planned.entry.run
        log = path / f"evaluate_{planned.evaluations.index(line) + 1}.log"
        code = self._children.run([*program("evaluate"), "-m", f"run={path}", *line], log, ONE_THREAD)
        return self._ended(f"{name} with {' '.join(line)}", code, log)

    def _ended(self, name: str, code: int, log: Path) -> str | None:
        if self._children.stopped_by:
            return None
        say_line(f"{name}: {f'ended with exit code {code}' if code else 'finished'}")
        return f"{name} ended with exit code {code}: {_last_line(log)} ({log})" if code else None


def _last_line(log: Path) -> str:
    lines: Iterable[str] = reversed(log.read_text(errors="replace").splitlines()) if log.exists() else []
    return next((line.strip() for line in lines if line.strip()), "")
