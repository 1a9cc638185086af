"""The curves of a training: losses, learning rate, speed, and what validation measured."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from generative.metrics.catalogue import metric_of, ordered, output_order, split_name, value_name
from generative.metrics.plots import Plot
from launch.page.charts import Chart, Line, Point

MAX_POINTS = 300  # of a line; what was logged more often is averaged
STEPS = "optimiser steps"
LOSS = "loss"
RATE = "train/learning_rate"
Curves = dict[str, list[tuple[int, float]]]


def curves_of(rows: Iterable[Mapping[str, str]]) -> Curves:
    """Read the finite values of each scalar over the steps, from the rows of ``metrics.csv``."""
    curves: Curves = {}
    for row in rows:
        for name, text in row.items():
            if name != "step" and text and math.isfinite(value := float(text)):
                curves.setdefault(name, []).append((int(row["step"]), value))
    return curves


def training_charts(curves: Curves, resumed_at: Sequence[int]) -> list[Chart]:
    """Draw the loss of training and validation, its parts, the learning rate and the speed.

    Args:
        curves: All that was logged.
        resumed_at: Steps at which the run was resumed.
    """
    events = {f"resumed at step {step:,}": float(step) for step in resumed_at}
    losses = {split: curves.get(f"{split}/{LOSS}", []) for split in ("train", "val")}
    words = {"train": "training", "val": "validation"}
    lines = [_line(words[split], points, number) for number, (split, points) in enumerate(losses.items()) if points]
    parts = [name for name in curves if name.startswith("train/") and name != RATE and curves[name] != losses["train"]]
    charts = [Chart("Loss", STEPS, lines, has_logarithmic_values=True, events=events)] if lines else []
    for name in [*parts, RATE, *(name for name in curves if name.startswith("throughput/"))]:
        if points := curves.get(name):
            is_loss = name in parts and min(value for _, value in points) > 0
            title = metric_of(name.partition("/")[2].replace("/", "_")).name
            line = _line(name, points, 0)
            charts.append(Chart(title, STEPS, [line], has_logarithmic_values=is_loss, events=events))
    return charts


def other_charts(curves: Curves) -> list[Chart]:
    """Draw what belongs to no split and was not always 0, such as what a user's callback logs."""
    known = ("train/", "val/", "test/", "throughput/")
    charts = []
    for name, points in curves.items():
        if not name.startswith(known) and any(value for _, value in points):
            charts.append(Chart(name, STEPS, [_line(name, points, 0)]))
    return charts


def validation_charts(curves: Curves, resumed_at: Sequence[int], is_minor: bool) -> list[Chart]:
    """Draw the metrics of validation, a line for each output.

    Args:
        curves: All that was logged.
        resumed_at: Steps at which the run was resumed.
        is_minor: Whether to draw those that are not among the first to look at, or those that are.
    """
    events = {f"resumed at step {step:,}": float(step) for step in resumed_at}
    names = [name.removeprefix("val/") for name in curves if name.startswith("val/")]
    metrics = [metric for metric in ordered(names) if metric.key != LOSS]
    outputs = sorted({split_name(name)[1] for name in names}, key=output_order)
    charts = []
    for metric in metrics:
        if metric.leading == is_minor:
            continue
        measured = {output: curves.get(f"val/{value_name(metric.key, output)}") for output in outputs}
        lines = [
            _line(output or metric.key, points, outputs.index(output)) for output, points in measured.items() if points
        ]
        way = f" {metric.arrow}" if metric.arrow else ""
        charts.append(Chart(metric.name + way, STEPS, lines, events=events))
    return charts


def chart_of(plot: Plot) -> Chart:
    """Lay out a plot that a metric gives."""
    lines = [
        Line(name, [Point(x, y) for x, y in points], number, number)
        for number, (name, points) in enumerate(plot.lines.items())
    ]
    return Chart(plot.title, plot.x_label, lines, plot.references, plot.is_logarithmic, plot.note)


def _line(label: str, points: Sequence[tuple[int, float]], color: int) -> Line:
    """Draw points as they are, or, where they are many, means of as many neighbours each."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    means = [Point(group[-1][0], statistics.fmean(value for _, value in group)) for group in groups]
    return Line(label, means, color, has_marks=len(means) <= 12)
