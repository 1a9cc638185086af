"""Lay runs side by side on one page: ``python compare.py runs='outputs/**'``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from files.whole import whole_file
from launch.command_line import show_help, split_flags
from launch.compare.board import arranged_by_study, board_of, named_by_study
from launch.compare.page import render_page, write_rows
from launch.compare.reading import Found, read_runs, run_folders
from launch.compare.rows import tables_of
from launch.errors import UserError, near_matches, reported
from launch.names import checked_name, file_name
from launch.output import as_typed
from launch.paths import is_there, typed_path
from launch.study.record import BASELINE, CELL, read_study

USAGE = """Usage: python compare.py runs=PATTERNS [by=KEYS] [metrics=METRICS] [name=NAME] [output=DIR]

Reads run folders and everything in their evaluations/ and writes DIR/NAME.html, one file that needs no network, and
DIR/NAME.csv: metrics with their spread over seeds, quality against network calls and against seconds, validation curves,
images of the same inputs side by side, costs, the settings in which the runs differ, and what failed or is unfinished.
Results of different test images, degradations or kinds of weights come into tables of their own. The page of a study's folder
opens with its board: a cell for each paradigm and task, who is ahead beyond chance and why, what became of the predictions.

  runs     folders or glob patterns, with commas between them; ** is any depth; write quotes, so that the shell leaves it alone
  by       config keys that tell rows of an experiment apart, such as objective, network.dim or sampler.num_steps; all else is
           averaged over; by default the keys in which the runs differ, seeds left out
  metrics  what to show and draw, such as psnr,ssim; by default the leading ones
  output   outputs/comparisons by default

  python compare.py runs='outputs/**'
  python compare.py runs='outputs/sweeps/lr/*' by=optimizer.lr metrics=psnr_hole
  python compare.py runs=ONE_RUN,ANOTHER_RUN name=side_by_side
  python compare.py runs=STUDY"""
DEFAULTS: dict[str, str | None] = {
    "runs": None, "by": None, "metrics": None, "name": None, "output": "outputs/comparisons",
}  # fmt: skip


def read_arguments(arguments: Sequence[str]) -> dict[str, str | None]:
    """Read the command line into values by key.

    Raises:
        UserError: A key is unknown, or no runs are named.
    """
    show_help(arguments, lambda: USAGE)
    values = dict(DEFAULTS)
    for argument in split_flags(list(arguments), {})[1]:
        key, equals, value = argument.partition("=")
        if key not in DEFAULTS or not equals:
            raise UserError(f"{argument} is no argument of compare.py: {near_matches(key, DEFAULTS)}")
        values[key] = checked_name(key, value) if key == "name" else value or None
    if values["runs"] is None:
        raise UserError("say which runs with runs='outputs/**', or several patterns with commas between them.")
    return values


def compare(arguments: Sequence[str]) -> Path:
    """Read runs, write the page and the CSV file next to it, and return the page's path.

    Raises:
        UserError: No run matches, none of them has results, or a key or metric is unknown.
    """
    values = read_arguments(arguments)
    typed = str(values["runs"])
    folder = typed_path("runs", typed)
    study = read_study(folder) if is_there("runs", typed) else None
    if study is None:
        found = read_runs(run_folders(str(values["runs"])))
    else:
        compared = [folder / run.run for run in study.runs if run.role in (CELL, BASELINE)]
        found = read_runs(sorted({path.resolve() for path in compared if path.exists()}))
        named_by_study(found, study, folder)
    if not found.measured:
        if not found.left_out:
            raise UserError(f"runs={values['runs']}: none of the trainings of this study has begun.")
        each = found.left_out[0]
        raise UserError(
            f"none of the {len(found.runs)} runs has results to compare; {each.folder} is {each.state}: {each.reason}."
        )
    metrics = _listed(values["metrics"])
    _check_metrics(metrics, found)
    tables, repeated = tables_of(found.measured, _listed(values["by"]))
    if study is not None:
        arranged_by_study(tables, study, found)
    names = [study.study] if study else sorted({entry.name for entry in found.measured})
    name = values["name"] or file_name([*names, *(f"by={key}" for key in _listed(values["by"]))])
    command = " ".join([as_typed("python compare.py"), *map(shlex.quote, arguments)])
    options: dict[str, Any] = {"title": values["name"] or ", ".join(names), "command": command, "metrics": metrics}
    options["board"] = None if study is None else board_of(study, found, tables)
    page = render_page(found, tables, found.left_out + repeated, options)

    path = typed_path("output", str(values["output"])) / f"{name}.html"
    with whole_file(path, "w") as file:
        file.write(page)
    write_rows(tables, path.with_suffix(".csv"))
    _print(found, path)
    return path


def _listed(value: str | None) -> list[str]:
    return [part.strip() for part in value.split(",") if part.strip()] if value else []


def _check_metrics(metrics: Sequence[str], found: Found) -> None:
    known = {name.partition("/")[0] for entry in found.measured for name in entry.metrics}
    for metric in metrics:
        if metric not in known:
            raise UserError(f"metrics={metric} was not measured in these runs: {near_matches(metric, known)}")


def _print(found: Found, path: Path) -> None:
    console = Console(highlight=False)
    for each in found.left_out:
        step = "" if each.step is None else f" at step {each.step}"
        console.print(f"left out: {each.folder} is {each.state}{step}: {each.reason}", soft_wrap=True, markup=False)
    console.print(f"comparison: {path} and {path.with_suffix('.csv').name}", soft_wrap=True, markup=False)


def start() -> None:
    """Run the command line of this process."""
    with reported():
        compare(sys.argv[1:])


if __name__ == "__main__":
    start()
