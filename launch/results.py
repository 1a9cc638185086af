"""Evaluations side by side: a row has the same settings and is a mean over its seeds, a line is one output of a row."""

from __future__ import annotations

import csv
import itertools
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from files.whole import whole_file
from generative.metrics.catalogue import STD, Metric, ordered, output_order, split_name, value_name


class Measured(Protocol):
    """What one evaluation measured.

    Attributes:
        seed: Seed of the training; values of the same one differ in the seed of the evaluation.
        metrics: Values by ``<metric>/<output>``.
    """

    @property
    def seed(self) -> Any: ...

    @property
    def metrics(self) -> dict[str, float]: ...


MeasuredT = TypeVar("MeasuredT", bound=Measured)


@dataclass(frozen=True)
class Result:
    """What one evaluation of a list of choices measured.

    Attributes:
        run: Short name of the run.
        path: Its folder.
        choices: What was chosen, by key.
        metrics: Values by ``<metric>/<output>``.
        seed: Of no use where the choices tell the seeds.
    """

    run: str
    path: str
    choices: dict[str, str]
    metrics: dict[str, float]
    seed: int = 0


@dataclass
class Row(Generic[MeasuredT]):
    """Evaluations of the same settings, over seeds.

    Attributes:
        name: Name of the runs.
        choices: What tells the row from others of the name, by key.
        entries: The evaluations.
    """

    name: str
    choices: dict[str, str]
    entries: list[MeasuredT]

    @property
    def metrics(self) -> list[str]:
        """Everything that was measured, as ``<metric>/<output>``."""
        return list(dict.fromkeys(itertools.chain.from_iterable(entry.metrics for entry in self.entries)))

    @property
    def outputs(self) -> list[str]:
        """The outputs, or what stands for some, in the order in which they are shown."""
        return sorted({split_name(name)[1] for name in self.metrics}, key=output_order)

    def _values(self, name: str) -> list[list[float]]:
        """Return the values of the evaluation seeds by training seed."""
        by_seed: dict[Any, list[float]] = {}
        for entry in self.entries:
            if name in entry.metrics:
                by_seed.setdefault(entry.seed, []).append(entry.metrics[name])
        return list(by_seed.values())

    def mean(self, name: str) -> float | None:
        """Return the mean over training seeds of the mean over evaluation seeds, or None where it was not measured."""
        values = self._values(name)
        return statistics.fmean(map(statistics.fmean, values)) if values else None

    def seed_deviation(self, name: str) -> float | None:
        """Return the sample standard deviation over the training seeds, with one of them over the evaluation seeds.

        None where there is one value.
        """
        values = self._values(name)
        several = [statistics.fmean(each) for each in values] if len(values) > 1 else values[0] if values else []
        if len(several) < 2:
            return None
        return statistics.stdev(several) if all(map(math.isfinite, several)) else math.nan

    def deviation(self, name: str) -> float | None:
        """Return the spread over the seeds, or else the one that the evaluation itself recorded for its draws."""
        key, output = split_name(name)
        over_seeds = self.seed_deviation(name)
        return self.mean(value_name(f"{key}_{STD}", output)) if over_seeds is None else over_seeds


def rows_of(results: Iterable[Result], seeds: Sequence[str]) -> list[Row[Result]]:
    """Sort results into rows, one for each run and combination of choices but for the keys in ``seeds``."""
    rows: dict[tuple[Any, ...], Row[Result]] = {}
    for result in results:
        choices = {key: value for key, value in result.choices.items() if key.lstrip("+") not in seeds}
        row = rows.setdefault((result.path, *choices.items()), Row(result.run, choices, []))
        row.entries.append(result)
    return list(rows.values())


def varying(several: Iterable[Mapping[str, str]]) -> list[str]:
    """Find the keys that have several values, in their order."""
    several = list(several)
    keys = dict.fromkeys(itertools.chain.from_iterable(several))
    return [key for key in keys if len({choices.get(key) for choices in several}) > 1]


def known_pixels_note(sampling: Iterable[tuple[str, dict[str, Any]]], names: Iterable[str]) -> str:
    """Say which results are of images with the known pixels put back: whole images are compared unfairly with others.

    Each result comes with its label and the record of its sampling; empty where all are alike or there are no holes.
    """
    labels: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for label, record in sampling:
        # Older records with a ramp and without the key are of the time when known pixels were always put back.
        kept = record.get("reimpose_known", True if "feather" in record else None)
        if kept is not None:
            labels[bool(kept)][label] = None
    fair = [metric.key for metric in ordered(names) if metric.in_hole and metric.sign]
    if not all(labels.values()) or not fair:
        return ""
    return (
        f"The known pixels are put back in {', '.join(labels[True])} and painted anew in {', '.join(labels[False])}: of the "
        f"metrics against the clean image only {' and '.join(fair)} is fair; python evaluate.py ... "
        "module.reimpose_known=true puts them back."
    )


def write_lines(lines: Sequence[tuple[dict[str, Any], Row[Any], str]], path: Path) -> None:
    """Write rows as CSV, whole or not at all: the exact means and, with several seeds, ``<metric>_seed_std``.

    A line is what stands before the metrics, by heading; the row; the output.
    """
    metrics = [metric.key for metric in ordered((n for _, row, _ in lines for n in row.metrics), has_spreads=True)]
    cells: list[dict[str, Any]] = []
    for labels, row, output in lines:
        means = {key: row.mean(value_name(key, output)) for key in metrics}
        spreads = {f"{key}_seed_std": row.seed_deviation(value_name(key, output)) for key in metrics}
        cells.append({key: value for key, value in (labels | means | spreads).items() if value is not None})
    present = {key for line in cells for key in line}
    spread_columns = [f"{key}_seed_std" for key in metrics]
    columns = [*dict.fromkeys(key for labels, _, _ in lines for key in labels), *metrics]
    columns += spread_columns if present & set(spread_columns) else []
    with whole_file(path, "w") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(cells)


def place_of(folder: str) -> str:
    """Write a folder as it is seen from here; of one that lies elsewhere only its name, as tables are given to others."""
    path = Path(folder)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def write_csv(results: Sequence[Result], seeds: Sequence[str], path: Path) -> None:
    """Write results, a line for each row and output.

    Columns are the run, its folder, a column for each key with several values, the other overrides, the output, the number
    of seeds, and the metrics.
    """
    rows = rows_of(results, seeds)
    keys = varying(row.choices for row in rows)
    lines: list[tuple[dict[str, Any], Row[Any], str]] = []
    for row in rows:
        fixed = " ".join(f"{key}={value}" for key, value in row.choices.items() if key not in keys)
        labels = {
            "run": row.name,
            "folder": place_of(row.entries[0].path),
            **{key: row.choices.get(key, "") for key in keys},
        }
        counts = {"num_seeds": len(row.entries)}
        lines += [({**labels, "overrides": fixed, "output": output, **counts}, row, output) for output in row.outputs]
    write_lines(lines, path)


def print_table(results: Sequence[Result], seeds: Sequence[str], path: Path, title: str = "comparison") -> None:
    """Print results and the file that holds them; a terminal shows as many metrics as it has room for."""
    rows = rows_of(results, seeds)
    lines = [(row, output) for row in rows for output in row.outputs]
    columns: list[tuple[str, list[str]]] = []
    if len({row.entries[0].path for row in rows}) > 1:
        columns.append(("run", [row.name for row, _ in lines]))
    columns += [(key, [row.choices.get(key, "") for row, _ in lines]) for key in varying(row.choices for row in rows)]
    columns.append(("output", [output for _, output in lines]))
    if any(len(row.entries) > 1 for row in rows):
        columns.append(("seeds", [str(len(row.entries)) for row, _ in lines]))
    num_labels = len(columns)
    metrics = ordered(name for row in rows for name in row.metrics)
    columns += [(metric.heading, [_cell(row, metric, output) for row, output in lines]) for metric in metrics]

    console = Console()
    ends = list(itertools.accumulate((_width(*column) for column in columns), initial=1))[1:]
    shown = len(columns)
    if console.is_terminal:
        shown = max(num_labels + 1, sum(end <= console.width for end in ends))
    else:
        console = Console(width=ends[-1])
    hidden = len(columns[shown:])
    table = Table(title=title, caption=f"{hidden} more metrics in the file" if hidden else None)
    for number, (name, _) in enumerate(columns[:shown]):
        table.add_column(escape(name), justify="left" if number < num_labels else "right", no_wrap=True)
    for cells in zip(*(cells for _, cells in columns[:shown]), strict=True):
        table.add_row(*map(escape, cells))
    console.print(table)
    console.print(f"{title}: {path}", soft_wrap=True, highlight=False, markup=False, emoji=False)


def _width(name: str, cells: list[str]) -> int:
    return max(map(len, [*name.split("\n"), *cells])) + 3  # padding and the line next to it


def _cell(row: Row[Any], metric: Metric, output: str) -> str:
    name = value_name(metric.key, output)
    return metric.text(row.mean(name), row.deviation(name))
