"""The page's tables as text: what stands in each cell, and which value of a column is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from generative.metrics.catalogue import EQUAL, Metric, ordered, output_order, split_name, value_name
from launch.compare.rows import INPUT, Row, Table, joined

NUM_COSTS = 2  # columns before those of the metrics: network calls, milliseconds


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        hint: What a pointer over it tells.
        metric: What stands in it; None for costs.
        case: Of a metric by case, which one.
        sign: 1 where higher is better, -1 where lower is, 0 where nothing competes.
    """

    heading: str
    hint: str = ""
    metric: Metric | None = None
    case: str = ""
    sign: int = 0


@dataclass(frozen=True)
class Number:
    """A number as shown.

    Attributes:
        text: The mean; empty where there is none.
        spread: The standard deviation.
        value: The exact mean, by which the column is sorted.
        deviation: The exact standard deviation.
        is_best: Whether it is the best of its column.
    """

    text: str = ""
    spread: str = ""
    value: float | None = None
    deviation: float | None = None
    is_best: bool = False


@dataclass
class Entry:
    """A line of a table.

    Attributes:
        name: Name of the runs.
        choices: What tells the row from others of the name.
        color: Number of its colour, or None for inputs.
        seeds: Number of seeds in words.
        numbers: The columns.
        is_bound: Whether it is an input or a bound, out of competition.
    """

    name: str
    choices: dict[str, str]
    color: int | None
    output: str
    seeds: str
    numbers: list[Number] = field(default_factory=list)
    is_bound: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of the page.

    Attributes:
        columns: Its columns of numbers.
        entries: Its lines.
        has_outputs: Whether a line is one output of a row, and not the whole row.
        metric: Of a table of one metric by case, which.
    """

    columns: list[Column]
    entries: list[Entry]
    has_outputs: bool = True
    metric: Metric | None = None


def seeds_text(row: Row) -> str:
    """Say over which seeds a row is the mean, such as ``2 x 3 eval``."""
    training, evaluation = len(row.training_seeds), len(row.evaluation_seeds)
    if training > 1 and evaluation > 1:
        return f"{training} x {evaluation} eval"
    return f"{evaluation} eval" if evaluation > 1 else str(training)


def _number(row: Row, column: Column, output: str) -> Number:
    if column.metric is None:
        seconds = row.sampling("seconds_per_image", output)
        value = row.sampling("num_network_calls", output) if column == CALLS else seconds and 1000 * seconds
        return Number() if value is None else Number(f"{value:.3g}", "", value)
    name = value_name(column.metric.key, column.case or output)
    mean, deviation = row.mean(name), row.deviation(name)
    if mean is None:
        return Number()
    spread = "" if deviation is None else column.metric.spread_text(mean, deviation)
    return Number(column.metric.text(mean), spread, mean, deviation)


CALLS = Column("calls", "network calls per image")
COSTS = [CALLS, Column("ms/image", "milliseconds per image, see Cost")]


def _column(metric: Metric, case: str = "") -> Column:
    hint = f"{metric.key}: {metric.better} is better" if metric.better else metric.key
    sign = 0 if case in metric.bounds else metric.sign
    return Column(case or metric.name, hint, metric, case, sign)


def main_grid(table: Table, chosen: Sequence[str]) -> Grid:
    """Lay out the input and what the paradigms make; metrics are the chosen ones, or all but the minor ones."""
    return _grid(table, [m for m in _of_outputs(table) if (m.key in chosen if chosen else not m.minor)], False)


def whole_grid(table: Table) -> Grid:
    """Lay out all metrics of all outputs, also of those that bound the others."""
    return _grid(table, _of_outputs(table), True)


def _of_outputs(table: Table) -> list[Metric]:
    return [metric for metric in ordered(table.names) if not metric.case]


def _grid(table: Table, metrics: list[Metric], has_bounds: bool) -> Grid:
    columns = [*COSTS, *map(_column, metrics)]
    keys = {metric.key for metric in metrics}
    names = {output for key, output in map(split_name, table.names) if key in keys}
    entries: list[Entry] = []
    for row in table.rows:
        for output in sorted(names, key=lambda name: (*_rank(row, name), *output_order(name))):
            numbers = [_number(row, column, output) for column in columns]
            is_own = output in row.own_outputs
            if any(number.text for number in numbers[NUM_COSTS:]) and (is_own or has_bounds):
                entries.append(Entry(row.name, row.shown, row.color, output, seeds_text(row), numbers, not is_own))
    entries = _by_output(joined(entries, _is_repeat))
    _mark_best(entries, columns)
    return Grid(columns, [*([] if has_bounds else _input_entry(table, columns)), *entries])


def _by_output(entries: list[Entry]) -> list[Entry]:
    """Put lines of the same runs and output together, in the order in which they come first."""
    first: dict[tuple[str, int | None, str], int] = {}
    runs: dict[tuple[str, int | None], int] = {}
    for number, entry in enumerate(entries):
        first.setdefault((entry.name, entry.color, entry.output), number)
        runs.setdefault((entry.name, entry.color), number)
    return sorted(entries, key=lambda e: (runs[e.name, e.color], first[e.name, e.color, e.output]))


def _rank(row: Row, output: str) -> tuple[int, int]:
    own = row.own_outputs
    return (0, own.index(output)) if output in own else (1, 0)


def _input_entry(table: Table, columns: list[Column]) -> list[Entry]:
    """Return one line for the input, which is the same for all rows."""
    for row in table.rows:
        numbers = [replace(_number(row, column, INPUT), spread="") for column in columns]
        if any(number.text for number in numbers[NUM_COSTS:]):
            return [Entry("degraded input", {}, None, "", "", numbers, True)]
    return []


def _is_repeat(a: Entry, b: Entry) -> bool:
    if (a.name, a.color, a.output, a.numbers[0].text) != (b.name, b.color, b.output, b.numbers[0].text):
        return False
    pairs = [(x.value, y.value) for x, y in zip(a.numbers[NUM_COSTS:], b.numbers[NUM_COSTS:], strict=True)]
    return all(x == y or (x is not None and y is not None and math.isclose(x, y, rel_tol=EQUAL)) for x, y in pairs)


def _mark_best(entries: list[Entry], columns: list[Column]) -> None:
    for number, column in enumerate(columns):
        found = [(e, e.numbers[number].value) for e in entries if not e.is_bound]
        competing = [(e, column.sign * value) for e, value in found if value is not None and math.isfinite(value)]
        values = [value for _, value in competing]
        if column.sign == 0 or len(values) < 2 or math.isclose(min(values), max(values), rel_tol=EQUAL):
            continue
        for entry, value in competing:
            if math.isclose(value, max(values), rel_tol=EQUAL):
                entry.numbers[number] = replace(entry.numbers[number], is_best=True)


def case_grids(table: Table) -> list[Grid]:
    """Lay out metrics by case, a table for each: label accuracy by label set, token accuracy by masked share."""
    grids = []
    for metric in ordered(table.names):
        if metric.case:
            cases = sorted({case for key, case in map(split_name, table.names) if key == metric.key}, key=output_order)
            columns = [*COSTS, *(_column(metric, case) for case in cases)]
            entries = []
            for row in table.rows:
                numbers = [_number(row, column, "sample") for column in columns]
                if any(number.text for number in numbers[NUM_COSTS:]):
                    entries.append(Entry(row.name, row.shown, row.color, "", seeds_text(row), numbers))
            _mark_best(entries, columns)
            grids.append(Grid(columns, entries, False, metric))
    return grids


def without_empty(grid: Grid) -> Grid:
    """Leave out columns in which nothing stands."""
    kept = [n for n in range(len(grid.columns)) if any(entry.numbers[n].text for entry in grid.entries)]
    entries = [replace(entry, numbers=[entry.numbers[n] for n in kept]) for entry in grid.entries]
    return replace(grid, columns=[grid.columns[n] for n in kept], entries=entries)
