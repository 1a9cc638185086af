"""The page's tables as text: what stands in each cell, and which value of a column is told to be the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from generative.metrics.catalogue import EQUAL, Metric, ordered, output_order, split_name, value_name
from launch.compare.intervals import is_ahead
from launch.compare.rows import Row, Table, joined
from lightning_modules.contract import OUTPUT_WORDS

NUM_COSTS = 2  # columns before those of the metrics: network calls, milliseconds
FLOOR, CEILING = "without training", "out of competition: bounds, other pictures"


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
        is_best: Whether it is better than all that compete with it, in every seed and beyond chance.
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
        row: What it is a line of; None for what is the same for all rows.
        output: The output that it shows; empty for a whole row.
        group: Lines of the same group stand together, and compete.
        seeds: Number of seeds in words.
        numbers: The columns.
    """

    name: str
    choices: dict[str, str]
    row: Row | None
    output: str
    group: str
    seeds: str
    numbers: list[Number] = field(default_factory=list)

    @property
    def color(self) -> int | None:
        """Number of its colour; None for what is the same for all rows."""
        return None if self.row is None else self.row.color

    @property
    def is_bound(self) -> bool:
        """Whether it is an input, an answer without skill or a bound: out of competition."""
        return self.group in (FLOOR, CEILING)


@dataclass(frozen=True)
class Grid:
    """A table of the page.

    Attributes:
        columns: Its columns of numbers.
        entries: Its lines.
        metric: Of a table of one metric by case, which.
    """

    columns: list[Column]
    entries: list[Entry]
    metric: Metric | None = None

    @property
    def groups(self) -> list[tuple[str, list[Entry]]]:
        """Its lines with the heading of their group, which is empty where there is one group alone."""
        names = list(dict.fromkeys(entry.group for entry in self.entries))
        return [(_heading(name), [entry for entry in self.entries if entry.group == name]) for name in names]


def _heading(group: str) -> str:
    words = OUTPUT_WORDS.get(group, "")
    return " · ".join(filter(None, [group.replace("_", " "), words]))


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
    """Lay out floors, what the paradigms make and what bounds it; metrics are the chosen ones, or all but the minor ones."""
    return _grid(table, [m for m in _of_outputs(table) if (m.key in chosen if chosen else not m.minor)])


def whole_grid(table: Table) -> Grid:
    """Lay out all metrics."""
    return _grid(table, _of_outputs(table))


def _of_outputs(table: Table) -> list[Metric]:
    return [metric for metric in ordered(table.names) if not metric.case]


def _grid(table: Table, metrics: list[Metric]) -> Grid:
    columns = [*COSTS, *map(_column, metrics)]
    keys = {metric.key for metric in metrics}
    names = {output for key, output in map(split_name, table.names) if key in keys}
    entries: list[Entry] = []
    for row in table.rows:
        floors = row.floors
        for output in sorted(names, key=lambda name: (*_rank(row, name), *output_order(name))):
            numbers = [_number(row, column, output) for column in columns]
            if not any(number.text for number in numbers[NUM_COSTS:]):
                continue
            if output in floors:
                plain = [replace(number, spread="") for number in numbers]
                entries.append(Entry(floors[output], {}, None, output, FLOOR, "", plain))
            else:
                group = output if output in row.own_outputs else CEILING
                name = row.name if group == output else f"{row.name} · {output.replace('_', ' ')}"
                entries.append(Entry(name, row.shown, row, output, group, seeds_text(row), numbers))
    entries = _by_group(joined(entries, _is_repeat))
    _mark_best(entries, columns)
    return Grid(columns, entries)


def _by_group(entries: list[Entry]) -> list[Entry]:
    """Put floors first and bounds last, between them output by output, and keep lines of the same runs together."""
    runs: dict[tuple[str, int | None], int] = {}
    for number, entry in enumerate(entries):
        runs.setdefault((entry.name, entry.color), number)
    groups = [FLOOR, *sorted({entry.group for entry in entries} - {FLOOR, CEILING}, key=output_order), CEILING]
    return sorted(entries, key=lambda entry: (groups.index(entry.group), runs[entry.name, entry.color]))


def _rank(row: Row, output: str) -> tuple[int, int]:
    own = row.own_outputs
    return (0, own.index(output)) if output in own else (1, 0)


def _is_repeat(a: Entry, b: Entry) -> bool:
    if a.row is b.row is None:
        return a.output == b.output  # measured on the same images
    if (a.name, a.color, a.output, a.numbers[0].text) != (b.name, b.color, b.output, b.numbers[0].text):
        return False
    pairs = [(x.value, y.value) for x, y in zip(a.numbers[NUM_COSTS:], b.numbers[NUM_COSTS:], strict=True)]
    return all(x == y or (x is not None and y is not None and math.isclose(x, y, rel_tol=EQUAL)) for x, y in pairs)


def _mark_best(entries: list[Entry], columns: list[Column]) -> None:
    """Mark in each group the value that is better than every other one beyond chance; see ``intervals.is_ahead``."""
    for number, column in enumerate(columns):
        for group in {entry.group for entry in entries} if column.sign else ():
            found = [(e, e.numbers[number].value) for e in entries if e.group == group and not e.is_bound]
            values = [(e, column.sign * v) for e, v in found if v is not None and math.isfinite(v)]
            if len(values) < 2:
                continue
            best, _ = max(values, key=lambda item: item[1])
            if all(_is_ahead(best, entry, column) for entry, _ in values if entry is not best):
                best.numbers[number] = replace(best.numbers[number], is_best=True)


def _is_ahead(best: Entry, other: Entry, column: Column) -> bool:
    if best.row is None or other.row is None or column.metric is None:
        return False
    name = value_name(column.metric.key, column.case or best.output)
    return is_ahead(best.row.entries, other.row.entries, name, column.sign)


def case_grids(table: Table) -> list[Grid]:
    """Lay out metrics by case, a table for each: label accuracy by label set, token accuracy by masked share."""
    grids = []
    for metric in ordered(table.names):
        if metric.case:
            found = {case for key, case in map(split_name, table.names) if key == metric.key}
            cases = sorted(found, key=lambda case: (case in metric.bounds, *output_order(case)))
            columns = [*COSTS, *(_column(metric, case) for case in cases)]
            entries = []
            for row in table.rows:
                numbers = [_number(row, column, "sample") for column in columns]
                if any(number.text for number in numbers[NUM_COSTS:]):
                    entries.append(Entry(row.name, row.shown, row, "", "", seeds_text(row), numbers))
            _mark_best(entries, columns)
            grids.append(Grid(columns, entries, metric))
    return grids


def without_empty(grid: Grid) -> Grid:
    """Leave out columns in which nothing stands."""
    kept = [n for n in range(len(grid.columns)) if any(entry.numbers[n].text for entry in grid.entries)]
    entries = [replace(entry, numbers=[entry.numbers[n] for n in kept]) for entry in grid.entries]
    return replace(grid, columns=[grid.columns[n] for n in kept], entries=entries)
