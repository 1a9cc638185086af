"""The plane of distortion and perception (Blau and Michaeli 2018, arXiv 1711.06077): what looking real costs in error."""

from __future__ import annotations

import math

from generative.metrics.catalogue import Metric, ordered, value_name
from launch.compare.rows import Row, Table
from launch.page.charts import Chart, Line, Point

NOTE = (
    "A line is a row, its marks are its outputs. The answer of least squared error is uppermost. Images whose law is that of "
    "the clean ones are leftmost: the best of them lie above the straight line (PMRF), on which samples of the posterior are."
)


def plane_charts(table: Table) -> list[Chart]:
    """Draw errors against distances of distributions, where rows have both.

    The line that no perfect restorer need fall below stands as far below the best answer as the metric of the error says.
    """
    metrics = ordered(table.names)
    distortions = [metric for metric in metrics if metric.perfect_costs]
    perceptions = [metric for metric in metrics if metric.of_features and metric.sign < 0 and not metric.spread_of]
    charts = []
    for distortion in distortions:
        for perception in perceptions:
            lines = [
                Line(row.label, points, row.color)
                for row in table.rows
                if (points := _points(row, distortion, perception))
            ]
            best = max((point.y for line in lines for point in line.points), default=None)
            if best is not None and len(lines) > 1:
                name = f"{distortion.perfect_costs:.2f} {distortion.unit} below the best"
                references = {name: best - distortion.perfect_costs}
                charts.append(Chart(f"{distortion.name} against {perception.name}", perception.name, lines, references))
    return charts


def _points(row: Row, distortion: Metric, perception: Metric) -> list[Point]:
    found = []
    for output in row.own_outputs:
        x, y = (row.mean(value_name(metric.key, output)) for metric in (perception, distortion))
        if x is not None and y is not None and math.isfinite(x + y):
            note = f"{row.label} · {output}: {distortion.text(y)} {distortion.unit} at {perception.text(x)}"
            found.append(Point(x, y, None, note))
    return sorted(found, key=lambda point: point.x)
