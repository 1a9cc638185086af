"""The curves of a table: quality over training, against network calls and against seconds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from launch.compare.charts import Chart, Line, Point
from launch.compare.metrics import LEADING, is_by_case, metric_name
from launch.compare.reading import validation_curve
from launch.compare.rows import Row, Table
from launch.compare.trainings import training_choices
from launch.settings import ABSENT

NUM_CHARTS = 4  # of a kind, where no metrics are asked for
STEP_KEYS = ("num_steps",)  # last part of those settings that move a point along its curve
DEGRADED = "degraded"
COSTS = {"num_network_calls": "network calls per image", "seconds_per_image": "seconds per image"}


def charted(names: set[str], chosen: Sequence[str]) -> list[str]:
    """Choose the metrics to draw.

    Args:
        names: What was measured, ``<metric>/<output>``.
        chosen: What the user asked for; empty for the leading ones.

    Returns:
        Metrics.
    """
    present = {name.partition("/")[0] for name in names}
    return [metric for metric in chosen or LEADING if metric in present][: None if chosen else NUM_CHARTS]


def _outputs(row: Row, metric: str, names: set[str]) -> list[str]:
    """Return the parts after the slash that are drawn: the paradigm's own outputs, or the cases."""
    found = sorted(name.partition("/")[2] for name in names if name.partition("/")[0] == metric)
    if is_by_case(metric):
        return [output for output in found if output != "real"]
    return [output for output in row.own_outputs if output in found]


def _degraded(table: Table, metric: str) -> dict[str, float]:
    values = [value for row in table.rows if (value := row.mean(f"{metric}/{DEGRADED}")) is not None]
    return {"degraded input": statistics.fmean(values)} if values else {}


def cost_charts(table: Table, kind: str, chosen: Sequence[str]) -> list[Chart]:
    """Draw quality against what a sample costs.

    Args:
        table: The rows.
        kind: ``num_network_calls`` or ``seconds_per_image``.
        chosen: Metrics, or none for the leading ones.

    Returns:
        A chart for each metric that has several points; those of a single row are in the table.
    """
    charts = []
    dashes: dict[str, int] = {}
    for metric in charted(table.metrics, chosen):
        lines: dict[tuple[int, str], tuple[str, str, list[Point]]] = {}
        for row in table.rows:
            fixed = {k: v for k, v in row.shown.items() if k.rpartition(".")[2] not in STEP_KEYS}
            name = " ".join([row.name, *(f"{k}={v}" for k, v in fixed.items() if v != ABSENT)])
            for output in _outputs(row, metric, table.metrics):
                cost = row.sampling(kind, "sample" if is_by_case(metric) else output)
                mean = row.mean(f"{metric}/{output}")
                if cost is None or mean is None:
                    continue
                deviation = row.deviation(f"{metric}/{output}")
                spread = f" ± {deviation:.2g}" if deviation is not None else ""
                note = f"{metric_name(metric)} {mean:.4g}{spread} at {cost:.3g} {COSTS[kind]}"
                line = lines.setdefault((row.color, f"{name} · {output}"), (output, name, []))
                if math.isfinite(mean):
                    line[2].append(Point(cost, mean, deviation, note))
        colors = _line_colors((color, name) for (color, _), (_, name, _) in lines.items())
        drawn = [
            Line(label, _merged(points), colors[color, name], dashes.setdefault(output, len(dashes)))
            for (color, label), (output, name, points) in lines.items()
        ]
        chart = Chart(metric_name(metric), COSTS[kind], drawn, _degraded(table, metric), is_logarithmic=True)
        if chart.num_points > 1 and len(table.rows) > 1:
            charts.append(chart)
    return charts


def _line_colors(lines: Iterable[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Keep the colours of the rows, unless several settings of the same weights would have the same one."""
    distinct = list(dict.fromkeys(lines))
    has_own = len({color for color, _ in distinct}) == len(distinct)
    return {line: line[0] if has_own else number for number, line in enumerate(distinct)}


def _merged(points: list[Point]) -> list[Point]:
    """Sort points, and join those of the same value: an output of one network call is the same for all numbers of steps."""
    same: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.x):
        same.setdefault(f"{point.y:.6g}", []).append(point)
    return sorted((group[(len(group) - 1) // 2] for group in same.values()), key=lambda point: point.x)


def validation_charts(table: Table, chosen: Sequence[str]) -> list[Chart]:
    """Draw the validation metrics of a table's runs over their training, as means over the seeds.

    Args:
        table: The rows.
        chosen: Metrics, or none for the leading ones.

    Returns:
        A chart for each metric that has points.
    """
    by_color: dict[int, Row] = {}
    for row in table.rows:
        by_color.setdefault(row.color, row)
    charts = []
    dashes: dict[str, int] = {}
    for metric in charted(table.metrics, chosen):
        lines = []
        for row in by_color.values():
            runs = {entry.run.path: entry for entry in row.entries}
            for output in _outputs(row, metric, table.metrics):
                curves = [validation_curve(path, f"{metric}/{output}") for path in runs]
                points = _mean_curve([curve for curve in curves if curve])
                if points:
                    dash = dashes.setdefault(output, len(dashes))
                    told = [
                        f"{key}={value}" for key, value in training_choices(row, by_color).items() if value != ABSENT
                    ]
                    lines.append(
                        Line(f"{' '.join([row.name, *told])} · {output}", points, row.color, dash, has_marks=False)
                    )
        chart = Chart(metric_name(metric), "optimiser steps", lines)
        if chart.num_points:
            charts.append(chart)
    return charts


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
