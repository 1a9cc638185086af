"""Report one run on one page: ``python report.py run=RUN``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from launch.command_line import own_arguments
from launch.errors import UserError, near_matches, reported
from launch.paths import typed_path
from launch.report.content import read_report
from launch.report.formats import FORMATS, write_report
from launch.run_folder import RunFolder

USAGE = """Usage: python report.py run=RUN [format=html|md|latex|pdf] [output=FILE]

Writes RUN/report.html, one file that needs no network and names no folder of this machine: loss, learning rate and speed over
the training, metrics with their definitions, calibration, the grids with a slider over the steps, settings, data and machine;
of a resumed run the whole history. Each training writes it at its end.

  format   md: the tables in Markdown (report.md); latex: the tables for LaTeX (report.tex); pdf: the page, printed with
           Chromium or Chrome (report.pdf); several with commas between them
  output   the file to write instead, of a single format

The run may be unfinished, running, or of an older version: what its folder does not hold is left out."""
DEFAULTS: dict[str, str | None] = {"format": "html", "output": None}


def report(arguments: Sequence[str]) -> list[Path]:
    """Write reports of a run, and return their paths.

    Raises:
        UserError: The folder is no run's, or a format is unknown or cannot be made here.
    """
    folder, own, others = own_arguments(list(arguments), DEFAULTS, USAGE)
    if others:
        near = near_matches(others[0].partition("=")[0], ["run", *DEFAULTS])
        raise UserError(f"{others[0]} is no argument of report.py: {near}")
    kinds = list(dict.fromkeys(str(own["format"]).split(",")))
    for kind in kinds:
        if kind not in FORMATS:
            raise UserError(f"format={kind} is unknown: {near_matches(kind, FORMATS)}")
    if own["output"] and len(kinds) > 1:
        raise UserError(
            f"output={own['output']} is one file, and format={own['format']} makes several: leave out output=."
        )
    run = RunFolder(typed_path("run", folder).resolve())
    content = read_report(run)
    targets = [typed_path("output", own["output"]) if own["output"] else run.path / FORMATS[kind][0] for kind in kinds]
    for kind, target in zip(kinds, targets, strict=True):
        write_report(content, kind, target)
        print(f"report: {target}")
    return targets


def report_of_training(run: RunFolder, config: DictConfig) -> None:
    """Write the page of a run that has ended; one that cannot be written is a line and no error.

    Args:
        run: The run folder, whose records are written.
        config: What it was trained with.
    """
    try:
        write_report(read_report(run, config), "html", run.path / FORMATS["html"][0])
    except Exception as error:  # whatever it is: the training itself is done and kept
        print(f"no report was written ({type(error).__name__}: {error}); python report.py run={run.path} tries again")


def start() -> None:
    """Run the command line of this process."""
    with reported():
        report(sys.argv[1:])


if __name__ == "__main__":
    start()
