"""Measures how soon the product reaches a given quality, and logs it in ``benchmarks/records.md``.

``python benchmarks/record.py TASK [--seeds N] [--change TEXT] [overrides]`` starts ``train.py`` for each seed as a user would.
The seconds are those of the whole command by the wall clock, the quality is what the runs wrote to ``metrics.json``. Where the
means over the seeds reach the figures of the task, a line is added to the page, and else nothing.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from record_tasks import TASKS, Part, check_conditions, check_reached

from files.cores import usable_cores
from files.whole import whole_file
from generative.metrics.catalogue import metric_of, split_name
from launch.command_line import taken
from launch.compose import parse
from launch.errors import EXIT_USER_ERROR, RunFailedError, UserError, near_matches, reported
from launch.paths import absolute_path
from launch.record import git_revision, now
from launch.record_files import read_metrics
from launch.results import Result, Row
from launch.run_folder import RunFolder
from launch.start import composed_start

ROOT = Path(__file__).resolve().parent.parent
PAGE = Path(__file__).parent / "records.md"
QUICK = ["debug=smoke"]
WIDTH = 125  # of the page's lines
OTHER_RUNS = ("init", "space", "regression")  # whose seconds a record would not count
SET_BY_TASK = ("experiment", "seed", "hydra.run.dir", "resume", "debug")
HEAD = """# Records: how soon a given quality is reached

One line a record, added by `python benchmarks/record.py TASK` on a machine that does nothing else; no figure is written by
hand. The script trains with the product's own commands, once for each seed. Figures are those of the runs' `metrics.json`; `±`
is the standard deviation over the training seeds, and their means must reach those of the task. Seconds are the wall clock's
for the whole command, its start and the evaluation included; a tokenizer's are added, those of a classifier, which only
judges, are not. They compare on one machine alone.

```bash
python benchmarks/record.py mnist_mixed --seeds 3 data.root=DIR
# whether all works, in a few minutes; adds nothing
python benchmarks/record.py scenes_holes --quick
# with a classifier, or a tokenizer of the same machine, that is trained already
python benchmarks/record.py scenes_labels classifier=RUN
```

## Tasks

Besides the settings below, the data's fingerprints must be those of the task.

"""
RECORDS = """
## Records

| date | task | quality | seconds | CPU seconds | what changed | machine | commit | seeds |
|---|---|---|---:|---:|---|---|---|---:|
"""
NONE = "\nNo record has been taken yet.\n"


@dataclass(frozen=True)
class Measured:
    """A training, the seconds of its whole command by the wall clock, and those of the processor, of all threads."""

    run: RunFolder
    seconds: float
    cpu_seconds: float


def trained(folder: Path, arguments: Sequence[str]) -> Measured:
    """Train in a process of its own and take the time.

    Raises:
        SystemExit: The command was refused; it has said why.
        RunFailedError: It failed; it has said why.
    """
    overrides = [*arguments, f"hydra.run.dir={folder}"]
    print(f"python train.py {' '.join(overrides)}", flush=True)
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run([sys.executable, str(ROOT / "train.py"), *overrides], check=False).returncode
    seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code == EXIT_USER_ERROR:
        sys.exit(code)
    if code:
        raise RunFailedError(f"train.py {' '.join(arguments)} ended with exit code {code}; nothing is recorded.")
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(RunFolder(folder), seconds, cpu_seconds)


def seconds_of(part: Part, run: RunFolder, machine: Mapping[str, Any]) -> float:
    """Return the seconds between start and end of a finished training.

    Args:
        machine: ``hardware`` of the runs that they are added to.

    Raises:
        UserError: Its record does not tell them, or they are of another machine.
    """
    record = run.record
    reasons = {
        "it has not ended": not record.get("finished"),
        "it was interrupted on the way": record.get("resumed_at_steps"),
        "it was trained on another machine or with other threads": record.get("hardware") != machine,
    }
    if reason := next((reason for reason, holds in reasons.items() if holds), None):
        raise UserError(
            f"{part.key}={run.path} tells no seconds to add, as {reason}: leave it out, then one is trained first."
        )
    begin, end = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    return (end - begin).total_seconds()


def figures(values: Mapping[str, float | None], spreads: Mapping[str, float | None]) -> str:
    """Write metrics by name, with their spreads where there are any."""
    cells = []
    for name, value in values.items():
        key, output = split_name(name)
        metric = metric_of(key)
        cells.append(" ".join(filter(None, [metric.words, output, metric.text(value, spreads.get(name)), metric.unit])))
    return ", ".join(cells)


def line_of(
    name: str, row: Row[Result], measured: Sequence[Measured], part: tuple[Part, RunFolder] | None, change: str
) -> str:
    """Write the line of a record: nothing but what was measured, or recorded by the runs."""
    record = measured[0].run.record
    machine, targets = record["hardware"], TASKS[name].targets
    means, spreads = ({key: value(key) for key in row.metrics} for value in (row.mean, row.seed_deviation))

    def seconds(key: str) -> str:
        return f"{means[key]:,.0f}" + (f" ± {spreads[key]:,.0f}" if spreads[key] is not None else "")

    added = f" + {seconds_of(*part, machine):,.0f} ({part[0].key})" if part and part[0].counts else ""
    commit, _, mark = record["git_revision"].partition("-")
    cells = [
        record["started"].partition("T")[0],
        f"`{name}`",
        figures({key: means.get(key) for key in targets}, spreads),
        seconds("seconds") + added,
        seconds("cpu_seconds"),
        change,
        f"{machine.get('accelerator', machine['processor'])}, {usable_cores()} cores, threads {machine['threads']}, "
        f"torch {record['versions']['torch']}",
        f"{commit[:8]}{mark and f' ({mark})'}",
        str(len(measured)),
    ]
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |\n"


def page(lines: str) -> str:
    """Write the page: what it is, the tasks, and lines of records."""
    rows = []
    for name, task in TASKS.items():
        first = f", after `experiment={task.part.experiment}`" if task.part else ""
        settings = ", ".join(f"`{key}` {value}" for key, value in task.conditions.items())
        goal = f"- **`{name}`**: `{' '.join(task.arguments)}`{first}, to {figures(task.targets, {})}"
        text = f"{goal}. Measured with {settings}."
        rows.append(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False) + "\n")
    return HEAD + "".join(rows) + RECORDS + (lines or NONE)


def lines_of(text: str) -> str:
    """Return the lines of the records of a page."""
    return text.partition(RECORDS)[2].removeprefix(NONE)


def what_changed(typed: str | None, revision: str, overrides: Sequence[str]) -> str:
    """Say what is new in a record: what was typed or else the commit's subject, and the overrides but for paths.

    Raises:
        UserError: Nothing was typed, and the code is not that of the commit.
    """
    if typed is None and "-" in revision:
        raise UserError("the code differs from its commit: commit it, or say what changed with --change TEXT.")
    if typed is None:
        command = ["git", "-C", str(ROOT), "log", "-1", "--format=%s"]
        typed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    shown = [override for override in overrides if absolute_path(*parse(override)) is None]
    return f"{typed} (`{' '.join(shown)}`)" if shown else typed


def measure(name: str, num_seeds: int, change: str | None, quick: bool, overrides: Sequence[str], folder: Path) -> str:
    """Train a task's experiment with each seed and write its line.

    Args:
        name: The task.
        num_seeds: Seeds are 0, 1, ...
        change: What is new, or None for the subject of the commit.
        quick: Whether to make a few steps only, whatever comes of them.
        overrides: Further settings of the training; ``tokenizer=RUN`` or ``classifier=RUN`` names what the task trains first.
        folder: Where the runs go.

    Returns:
        The line.

    Raises:
        UserError: A setting is wrong, another task was measured, or the code changed on the way.
        RunFailedError: A training failed, or the quality is not reached.
    """
    task = TASKS[name]
    if revision := git_revision():
        change = what_changed(change, revision, overrides)
    else:
        raise UserError("a record names its commit: measure it in a clone of the repository.")
    arguments = [*task.arguments, *overrides, *(QUICK if quick else [])]
    composed_start(arguments)  # whatever is wrong is said before anything is trained
    part = None
    if task.part:
        named, _ = taken(list(overrides), task.part.key)
        first = [f"experiment={task.part.experiment}", *(QUICK if quick else [])]
        run = RunFolder.existing(named, task.part.key) if named else trained(folder / task.part.key, first).run
        part = task.part, run
        arguments = [*taken(arguments, task.part.key)[1], f"{task.part.key}={run.path}"]
    measured = [trained(folder / f"seed_{seed}", [*arguments, f"seed={seed}"]) for seed in range(num_seeds)]
    row: Row[Result] = Row(name, {}, [])
    for seed, each in enumerate(measured):
        result = read_metrics(each.run.path / "metrics.json")
        if each.run.record["git_revision"] != revision:
            raise UserError("the code was changed while it was measured; nothing is recorded.")
        if not quick:
            check_conditions(task, result["record"])
        times = {"seconds": each.seconds, "cpu_seconds": each.cpu_seconds}
        row.entries.append(Result(name, str(each.run.path), {}, result["metrics"] | times, seed))
    line = line_of(name, row, measured, part, change)
    if not quick:
        check_reached(task, row)
    return line


class Arguments(argparse.ArgumentParser):
    """Says what is wrong with a command line in one sentence."""

    def error(self, message: str) -> NoReturn:
        """See ``argparse.ArgumentParser.error``.

        Raises:
            UserError: Always.
        """
        raise UserError(f"{message}; python benchmarks/record.py --help tells what it takes.")


def main(arguments: Sequence[str]) -> None:
    """Measure a task, print its line and add it to the page."""
    parser = Arguments(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", metavar="TASK", nargs="?", default="", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, default=2, help="number of trainings, with the seeds 0, 1, ...")
    parser.add_argument("--change", help="what is new; by default the subject of the commit")
    parser.add_argument("--quick", action="store_true", help="a few steps, to see whether all works; adds nothing")
    parser.add_argument("overrides", nargs="*", help="further settings of train.py, such as data.root=DIR")
    options = parser.parse_intermixed_args(arguments)
    if options.task not in TASKS:
        raise UserError(f"{options.task or 'nothing'} is no task: {near_matches(options.task, TASKS)}")
    if options.seeds < 1:
        raise UserError(f"--seeds={options.seeds} must be at least 1.")
    for override in options.overrides:
        if "=" not in override or parse(override)[0] in SET_BY_TASK:
            raise UserError(
                f"{override} cannot be set here: name settings as in data.root=DIR, and seeds by --seeds N."
            )
        if parse(override)[0].partition(".")[0] in OTHER_RUNS:
            raise UserError(f"{override} uses another run, whose seconds a record does not count: leave it out.")
    folder = Path("outputs", "records", f"{options.task}_{now()[:19].replace(':', '-')}").absolute()
    line = measure(options.task, options.seeds, options.change, options.quick, options.overrides, folder)
    print(f"\n{line}", end="")
    if not options.quick:
        with whole_file(PAGE, "w") as file:
            file.write(page(lines_of(PAGE.read_text()) + line))
        print(f"added to {PAGE}")


if __name__ == "__main__":
    with reported():
        main(sys.argv[1:])
