"""The curves of a table: quality over training, against network calls and against seconds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence

from generative.metrics.catalogue import Metric, ordered, split_name, value_name
from launch.compare.reading import validation_curve
from launch.compare.rows import Row, Table, label_of
from launch.compare.tables import Grid
from launch.compare.trainings import training_choices
from launch.page.charts import Chart, Line, Point

NUM_CHARTS = 4  # of a kind, where no metrics are asked for
STEP_KEYS = ("num_steps",)  # last part of those settings that move a point along its curve
COSTS = {"network calls per image": (0, 1.0), "seconds per image": (1, 0.001)}  # column of a grid and its unit


def charted(names: Iterable[str], chosen: Sequence[str]) -> list[Metric]:
    """Choose the metrics to draw: those that are asked for, or the leading ones of what was measured."""
    present = ordered(names)
    return [m for m in present if m.key in chosen] if chosen else [m for m in present if m.leading][:NUM_CHARTS]


def cost_charts(grids: Sequence[Grid], metrics: Sequence[Metric], cost: str) -> list[Chart]:
    """Draw quality against one of ``COSTS``, a point for each line of the tables; single points are in these."""
    charts = []
    dashes: dict[str, int] = {}
    place, unit = COSTS[cost]
    for metric in metrics:
        lines: dict[tuple[int, str], tuple[str, str, list[Point]]] = {}
        references: dict[str, float] = {}
        for grid in grids:
            columns = [n for n, column in enumerate(grid.columns) if column.metric == metric]
            for number, entry in itertools.product(columns, grid.entries):
                value = entry.numbers[number]
                if value.value is None or (entry.color is not None and grid.columns[number].sign != metric.sign):
                    continue  # what bounds the others is no point
                if entry.color is None:
                    references[entry.name] = value.value
                    continue
                fixed = {k: v for k, v in entry.choices.items() if k.rpartition(".")[2] not in STEP_KEYS}
                name, output = label_of(entry.name, fixed), entry.output or grid.columns[number].case
                line = lines.setdefault((entry.color, f"{name} · {output}"), (output, name, []))
                if (x := entry.numbers[place].value) is not None and math.isfinite(value.value):
                    note = f"{metric.name} {value.text} {value.spread} at {x * unit:.3g} {cost}"
                    line[2].append(Point(x * unit, value.value, value.deviation, " ".join(note.split())))
        colors = _line_colors((color, name) for (color, _), (_, name, _) in lines.items())
        drawn = [
            Line(
                label,
                sorted(points, key=lambda point: point.x),
                colors[color, name],
                dashes.setdefault(output, len(dashes)),
            )
            for (color, label), (output, name, points) in lines.items()
        ]
        chart = Chart(metric.name, cost, drawn, references, is_logarithmic=True)
        if chart.num_points > 1:
            charts.append(chart)
    return charts


def _line_colors(lines: Iterable[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Keep the colours of the rows, unless several settings of the same weights would have the same one."""
    distinct = list(dict.fromkeys(lines))
    has_own = len({color for color, _ in distinct}) == len(distinct)
    return {line: line[0] if has_own else number for number, line in enumerate(distinct)}


def validation_charts(table: Table, metrics: Sequence[Metric]) -> list[Chart]:
    """Draw the validation metrics of a table's runs over their training, as means over the seeds."""
    by_color: dict[int, Row] = {}
    for row in table.rows:
        by_color.setdefault(row.color, row)
    charts = []
    dashes: dict[str, int] = {}
    for metric in metrics:
        lines = []
        for row in by_color.values():
            runs = {entry.run.path: entry for entry in row.entries}
            label = label_of(row.name, training_choices(row, by_color))
            for output in _drawn_outputs(row, metric):
                curves = [validation_curve(path, value_name(metric.key, output)) for path in runs]
                if points := _mean_curve([curve for curve in curves if curve]):
                    dash = dashes.setdefault(output, len(dashes))
                    lines.append(Line(f"{label} · {output}", points, row.color, dash, has_marks=False))
        chart = Chart(metric.name, "optimiser steps", lines)
        if chart.num_points:
            charts.append(chart)
    return charts


def _drawn_outputs(row: Row, metric: Metric) -> list[str]:
    """Return the parts after the slash that are drawn: the paradigm's own outputs, or the cases but for bounds."""
    measured = [output for key, output in map(split_name, row.metrics) if key == metric.key]
    if metric.case:
        return sorted(set(measured) - set(metric.bounds))
    return [output for output in row.own_outputs if output in measured]


def _mean_curve(curves: list[list[tuple[int, float]]]) -> list[Point]:
    """Average curves at the steps that all of them have."""
    if not curves:
        return []
    common = set.intersection(*({step for step, _ in curve} for curve in curves))
    values = {step: [dict(curve)[step] for curve in curves] for step in sorted(common)}
    return [
        Point(step, statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else None)
        for step, each in values.items()
    ]
