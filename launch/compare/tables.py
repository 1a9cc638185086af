"""The page's tables as text: what stands in each cell, and which value of a column is the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from generative.metrics.catalogue import output_order
from launch.compare.metrics import MINOR, direction, is_by_case, metric_name, ordered
from launch.compare.rows import Row, Table

DEGRADED = "degraded"
EQUAL = 1e-6  # relative: values that differ by less are the same


@dataclass(frozen=True)
class Column:
    """A column of numbers.

    Attributes:
        heading: Its heading.
        hint: ``higher is better`` and the like.
    """

    heading: str
    hint: str = ""


@dataclass(frozen=True)
class Number:
    """A number as shown.

    Attributes:
        text: The mean; empty where there is none.
        spread: The standard deviation.
        value: The exact mean, by which the column is sorted.
        is_best: Whether it is the best of its column.
    """

    text: str = ""
    spread: str = ""
    value: float | None = None
    is_best: bool = False


@dataclass
class Entry:
    """A line of a table.

    Attributes:
        name: Name of the runs.
        choices: What tells the row from others of the name.
        color: Number of its colour, or None for inputs.
        output: The output.
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
    """

    columns: list[Column]
    entries: list[Entry]
    has_outputs: bool = True


def number_text(metric: str, value: float) -> str:
    """Write a value with as many digits as are of use.

    Args:
        metric: Its metric.
        value: The value.

    Returns:
        Text.
    """
    if metric.startswith(("psnr", "calibration", "spread")):
        return f"{value:.2f}"
    if metric.startswith(("ssim", "label_accuracy", "exact_sets", "precision", "recall", "token_accuracy")):
        return f"{value:.3f}"
    return f"{value:.4g}"


def spread_text(metric: str, mean: float, deviation: float) -> str:
    """Write a standard deviation with the digits of its mean.

    Args:
        metric: The metric.
        mean: The mean.
        deviation: The deviation.

    Returns:
        Text, as ``± 0.02``.
    """
    decimals = len(number_text(metric, mean).partition(".")[2].partition("e")[0])
    least = 10.0**-decimals
    return f"± {deviation:.{decimals}f}" if deviation >= least / 2 or deviation < EQUAL * abs(mean) else f"± <{least:g}"


def seeds_text(row: Row) -> str:
    """Say over which seeds a row is the mean.

    Args:
        row: The row.

    Returns:
        Such as ``2 x 3 eval``.
    """
    training, evaluation = len(row.training_seeds), len(row.evaluation_seeds)
    if training > 1 and evaluation > 1:
        return f"{training} x {evaluation} eval"
    return f"{evaluation} eval" if evaluation > 1 else str(training)


def _number(row: Row, metric: str, output: str) -> Number:
    mean = row.mean(f"{metric}/{output}")
    if mean is None:
        return Number()
    deviation = row.deviation(f"{metric}/{output}")
    return Number(number_text(metric, mean), "" if deviation is None else spread_text(metric, mean, deviation), mean)


def _cost(value: float | None, factor: float = 1.0) -> Number:
    return Number() if value is None else Number(f"{value * factor:.3g}", "", value * factor)


def _hint(metric: str) -> str:
    return {1: "higher is better", -1: "lower is better", 0: ""}[direction(metric)]


def main_grid(table: Table, chosen: Sequence[str]) -> Grid:
    """Lay out what the paradigms make, and the input.

    Args:
        table: The rows.
        chosen: Metrics to show, or none for all but the minor ones.

    Returns:
        A line for each row and each of its own outputs.
    """
    metrics = [m for m in _image_metrics(table) if (m in chosen if chosen else m not in MINOR)]
    return _grid(table, metrics, False)


def whole_grid(table: Table) -> Grid:
    """Lay out all metrics of all outputs, also of those that bound the others.

    Args:
        table: The rows.

    Returns:
        A line for each row and output.
    """
    return _grid(table, _image_metrics(table), True)


def _image_metrics(table: Table) -> list[str]:
    kinds = {name.partition("/")[0] for name in table.metrics}
    return [m for m in ordered(kinds) if not is_by_case(m) and not (m.endswith("_std") and m[:-4] in kinds)]


def _grid(table: Table, metrics: list[str], has_bounds: bool) -> Grid:
    costs = [Column("calls", "network calls per image"), Column("ms/image", "milliseconds per image, see Cost")]
    columns = [*costs, *(Column(metric_name(metric), _hint(metric)) for metric in metrics)]
    entries: list[Entry] = []
    if not has_bounds:
        entries += _input_entry(table, metrics)
    for row in table.rows:
        names = {name.partition("/")[2] for name in table.metrics if not is_by_case(name)}
        for output in sorted(names, key=lambda name: (*_rank(row, name), *output_order(name))):
            numbers = [_number(row, metric, output) for metric in metrics]
            is_own = output in row.own_outputs
            if any(number.text for number in numbers) and (is_own or has_bounds):
                calls, seconds = (row.sampling(k, output) for k in ("num_network_calls", "seconds_per_image"))
                cells = [_cost(calls), _cost(seconds, 1000), *numbers]
                entries.append(Entry(row.name, row.shown, row.color, output, seeds_text(row), cells, not is_own))
    entries = _by_output(_without_repeats(entries))
    _mark_best(entries, [0, 0, *map(direction, metrics)])
    return Grid(columns, entries)


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


def _input_entry(table: Table, metrics: list[str]) -> list[Entry]:
    """Return one line for the input, which is the same for all rows."""
    row = next((row for row in table.rows if row.mean(f"psnr/{DEGRADED}") is not None), None)
    if row is None:
        return []
    numbers = [_number(row, metric, DEGRADED) for metric in metrics]
    plain = [Number(number.text, "", number.value) for number in numbers]
    return [Entry("degraded input", {}, None, "", "", [Number(), Number(), *plain], True)]


def _without_repeats(entries: list[Entry]) -> list[Entry]:
    """Join lines of the same runs and output whose metrics are equal: the choices that differ do not bear on them."""
    kept: list[Entry] = []
    for entry in entries:
        same = next((other for other in kept if _is_repeat(entry, other)), None)
        if same is None:
            kept.append(entry)
        else:
            same.choices = {k: v for k, v in same.choices.items() if entry.choices.get(k) == v}
    return kept


def _is_repeat(a: Entry, b: Entry) -> bool:
    if (a.name, a.color, a.output, a.numbers[0].text) != (b.name, b.color, b.output, b.numbers[0].text):
        return False
    pairs = [(x.value, y.value) for x, y in zip(a.numbers[2:], b.numbers[2:], strict=True)]
    return all(x == y or (x is not None and y is not None and math.isclose(x, y, rel_tol=EQUAL)) for x, y in pairs)


def _mark_best(entries: list[Entry], directions: list[int]) -> None:
    for column, sign in enumerate(directions):
        competing = [e for e in entries if not e.is_bound and _is_finite(e.numbers[column].value)]
        if sign == 0 or len(competing) < 2:
            continue
        values = [sign * (e.numbers[column].value or 0.0) for e in competing]
        best = max(values)
        if math.isclose(min(values), best, rel_tol=EQUAL):
            continue
        for entry in competing:
            number = entry.numbers[column]
            if math.isclose(sign * (number.value or 0.0), best, rel_tol=EQUAL):
                entry.numbers[column] = Number(number.text, number.spread, number.value, True)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def case_grids(table: Table) -> dict[str, Grid]:
    """Lay out metrics by case: label accuracy by set of labels, token accuracy by masked share.

    Args:
        table: The rows.

    Returns:
        A table for each metric, by its name.
    """
    grids = {}
    kinds = {name.partition("/")[0] for name in table.metrics if is_by_case(name)}
    for metric in ordered({kind for kind in kinds if not (kind.endswith("_std") and kind[:-4] in kinds)}):
        cases = {name.partition("/")[2] for name in table.metrics if name.partition("/")[0] == metric}
        cases_sorted = sorted(cases, key=output_order)
        entries = []
        for row in table.rows:
            numbers = [_number(row, metric, case) for case in cases_sorted]
            if any(number.text for number in numbers):
                # The calls come first for _is_repeat and are not shown: two hidden columns of costs.
                numbers = [_cost(row.sampling("num_network_calls", "sample")), Number(), *numbers]
                entries.append(Entry(row.name, row.shown, row.color, "", seeds_text(row), numbers))
        _mark_best(entries, [0, 0, *(0 if case == "real" else direction(metric) for case in cases_sorted)])
        columns = [Column("calls", "network calls per image"), Column("ms/image"), *map(Column, cases_sorted)]
        grids[metric_name(metric)] = _without_empty(Grid(columns, entries, False))
    return grids


def _without_empty(grid: Grid) -> Grid:
    """Leave out columns in which nothing stands."""
    kept = [n for n in range(len(grid.columns)) if any(entry.numbers[n].text for entry in grid.entries)]
    for entry in grid.entries:
        entry.numbers = [entry.numbers[n] for n in kept]
    return Grid([grid.columns[n] for n in kept], grid.entries, grid.has_outputs)
