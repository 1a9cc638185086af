"""Results side by side: a row for each combination of choices and each output, means over the seeds, metrics as columns."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from files.whole import whole_file
from generative.metrics.catalogue import Metric, ordered, output_order


@dataclass(frozen=True)
class Result:
    """What one evaluation measured.

    Attributes:
        run: Short name of the run.
        path: Its folder.
        choices: What was chosen, by key.
        metrics: Values by ``<metric>/<output>``.
    """

    run: str
    path: str
    choices: dict[str, str]
    metrics: dict[str, float]


@dataclass(frozen=True)
class Row:
    """Means of one output over the seeds.

    Attributes:
        run: Short name of the run.
        path: Its folder.
        choices: What was chosen, by key, without the seeds.
        output: The output.
        num_seeds: Evaluations behind the means.
        means: Mean by metric.
        deviations: Sample standard deviation by metric, where there are two values.
    """

    run: str
    path: str
    choices: dict[str, str]
    output: str
    num_seeds: int
    means: dict[str, float]
    deviations: dict[str, float]


def rows_of(results: list[Result], seeds: tuple[str, ...]) -> list[Row]:
    """Average over the seeds.

    Args:
        results: The evaluations.
        seeds: Keys whose values are averaged over.

    Returns:
        A row for each combination of everything else and each output, in the order of the results.
    """
    groups: dict[tuple[str, tuple[tuple[str, str], ...]], list[Result]] = {}
    for result in results:
        choices = tuple((key, value) for key, value in result.choices.items() if key.lstrip("+") not in seeds)
        groups.setdefault((result.path, choices), []).append(result)
    rows = []
    for (path, choices), group in groups.items():
        names = dict.fromkeys(itertools.chain.from_iterable(result.metrics for result in group))
        values = {name: [r.metrics[name] for r in group if name in r.metrics] for name in names}
        for output in sorted({name.split("/", 1)[1] for name in values}, key=output_order):
            own = {n.split("/", 1)[0]: v for n, v in values.items() if n.split("/", 1)[1] == output}
            means = {metric: float(np.mean(v)) for metric, v in own.items()}
            deviations = {metric: float(np.std(v, ddof=1)) for metric, v in own.items() if len(v) > 1}
            rows.append(Row(group[0].run, path, dict(choices), output, len(group), means, deviations))
    return rows


def _varying(rows: list[Row]) -> list[str]:
    keys = dict.fromkeys(itertools.chain.from_iterable(row.choices for row in rows))
    return [key for key in keys if len({row.choices.get(key) for row in rows}) > 1]


def known_pixels_note(sampling: Iterable[tuple[str, dict[str, Any]]], metrics: Iterable[str]) -> str:
    """Say which results are of images with the known pixels put back and which are not: whole images are compared unfairly.

    Args:
        sampling: Label and record of the sampling of each result.
        metrics: Names of what was measured.

    Returns:
        A sentence; empty where all results are alike or there are no holes.
    """
    labels: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for label, record in sampling:
        # Records of MaskGIT without the key are of the time when it always put them back.
        kept = record.get("reimpose_known", True if "feather" in record else None)
        if kept is not None:
            labels[bool(kept)][label] = None
    if not all(labels.values()) or not any(metric.startswith("psnr_hole") for metric in metrics):
        return ""
    return (
        f"The known pixels are put back in {', '.join(labels[True])} and painted anew in {', '.join(labels[False])}: of the "
        "metrics against the clean image only psnr_hole is fair; python evaluate.py ... module.reimpose_known=true puts "
        "them back."
    )


def write_csv(results: list[Result], seeds: tuple[str, ...], path: Path) -> None:
    """Write the results whole and move them into place.

    Columns are the run, its folder, a column for each key with several values, the other overrides, the output, the number
    of seeds, each metric and, with several seeds, its standard deviation ``<metric>_seed_std``.

    Args:
        results: The evaluations.
        seeds: Keys whose values are averaged over.
        path: File to write.
    """
    rows = rows_of(results, seeds)
    varying, metrics = (
        _varying(rows),
        [m.key for m in ordered(itertools.chain.from_iterable(r.means for r in rows), True)],
    )
    has_deviations = any(row.deviations for row in rows)
    columns = [*metrics, *(f"{metric}_seed_std" for metric in metrics if has_deviations)]
    with whole_file(path, "w") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "folder", *varying, "overrides", "output", "num_seeds", *columns])
        for row in rows:
            fixed = " ".join(f"{key}={value}" for key, value in row.choices.items() if key not in varying)
            values = row.means | {f"{metric}_seed_std": value for metric, value in row.deviations.items()}
            choices = [row.choices.get(key, "") for key in varying]
            cells = [values.get(column, "") for column in columns]
            writer.writerow([row.run, row.path, *choices, fixed, row.output, row.num_seeds, *cells])


def print_table(results: list[Result], seeds: tuple[str, ...], path: Path, title: str = "comparison") -> None:
    """Print the results and where they are written; a terminal shows as many metrics as it has room for.

    Args:
        results: The evaluations.
        seeds: Keys whose values are averaged over.
        path: Where all of them are written.
        title: Title of the table.
    """
    rows = rows_of(results, seeds)
    columns: dict[str, list[str]] = {}
    if len({row.path for row in rows}) > 1:
        columns["run"] = [row.run for row in rows]
    columns |= {key: [row.choices.get(key, "") for row in rows] for key in _varying(rows)}
    columns["output"] = [row.output for row in rows]
    if any(row.num_seeds > 1 for row in rows):
        columns["seeds"] = [str(row.num_seeds) for row in rows]
    num_labels = len(columns)
    shown = ordered(itertools.chain.from_iterable(row.means for row in rows))
    metrics = {metric.heading: [_cell(row, metric) for row in rows] for metric in shown}

    console = Console()
    width = 1 + sum(_width(name, cells) for name, cells in columns.items())
    hidden = 0
    for metric, cells in metrics.items():
        width += _width(metric, cells)
        if console.is_terminal and width > console.width and len(columns) > num_labels:
            hidden = len(metrics) + num_labels - len(columns)
            break
        columns[metric] = cells
    if not console.is_terminal:
        console = Console(width=width)
    table = Table(title=title, caption=f"{hidden} more metrics in the file" if hidden else None)
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number < num_labels else "right", no_wrap=True)
    for cells_of_row in zip(*columns.values(), strict=True):
        table.add_row(*cells_of_row)
    console.print(table)
    console.print(f"{title}: {path}", soft_wrap=True, highlight=False)


def _width(name: str, cells: list[str]) -> int:
    return max(map(len, [name, *cells])) + 3  # padding and the line beside it


def _cell(row: Row, metric: Metric) -> str:
    return metric.text(row.means.get(metric.key), row.deviations.get(metric.key))
