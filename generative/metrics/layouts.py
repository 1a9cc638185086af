"""The tables of a terminal or a card: values laid out by the tables of their metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from generative.metrics.catalogue import STD, Metric, ordered, output_order, split_name, value_name


@dataclass(frozen=True)
class Layout:
    """A table of values as text.

    Attributes:
        headings: Headings of the columns, in one or two lines; the first is that of the outputs.
        rows: An output and its values, column by column.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]


def layouts(values: Mapping[str, float]) -> list[Layout]:
    """Lay values out in the tables of their metrics, each in one; a spread stands behind its mean."""
    found = []
    metrics = ordered(values)
    for table in dict.fromkeys(metric.table for metric in metrics):
        columns = [metric for metric in metrics if metric.table == table]
        keys = {metric.key for metric in columns}
        cases = {metric.case for metric in columns}
        outputs = sorted({output for key, output in map(split_name, values) if key in keys}, key=output_order)
        rows = [[output, *(cell(values, metric, output) for metric in columns)] for output in outputs]
        first = cases.pop() if len(cases) == 1 else ""
        headings = [replace(metric, features="").heading for metric in columns]  # the title says which features
        found.append(Layout(table.title, [first or "output", *headings], rows))
    return found


def cell(values: Mapping[str, float], metric: Metric, output: str) -> str:
    """Write one of the values with the spread that was recorded for it; empty where it was not measured."""
    return metric.text(
        values.get(value_name(metric.key, output)), values.get(value_name(f"{metric.key}_{STD}", output))
    )
