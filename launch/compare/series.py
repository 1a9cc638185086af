"""The curves of a table: losses and quality over training, against network calls, against seconds and against each other."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Iterable, Sequence

from generative.metrics.catalogue import Metric, ordered, split_name, value_name
from launch.compare.reading import Measured, logged_curve
from launch.compare.rows import Row, Table, label_of
from launch.compare.tables import Grid
from launch.compare.trainings import runs_of, training_choices, training_cost, trainings_of
from launch.page.charts import Chart, Line, Point

NUM_CHARTS = 4  # of a kind, where no metrics are asked for
STEP_KEYS = ("num_steps",)  # last part of those settings that move a point along its curve
MAX_POINTS = 120  # of a loss
IMAGES, MINUTES = TRAINING_COSTS = ("training images", "minutes of training")
Unnamed = tuple[str, str, list[Point]]  # output, name and points of a line
COSTS = {"network calls per image": (0, 1.0), "seconds per image": (1, 0.001)}  # column of a grid and its unit


def charted(table: Table, chosen: Sequence[str]) -> list[Metric]:
    """Choose the metrics to draw: those that are asked for, or the main ones of the task and the leading ones."""
    present = ordered(table.names)
    if chosen:
        return [metric for metric in present if metric.key in chosen]
    main = [metric for metric in present if metric.sign and table.task in metric.main_of]
    return [*main, *(metric for metric in present if metric.leading and metric not in main)][:NUM_CHARTS]


def cost_charts(grids: Sequence[Grid], metrics: Sequence[Metric], cost: str) -> list[Chart]:
    """Draw quality against one of ``COSTS``, a point for each line of the tables."""
    charts = []
    dashes: dict[str, int] = {}
    place, unit = COSTS[cost]
    for metric in metrics:
        lines: dict[tuple[int, str], Unnamed] = {}
        references: dict[bool, dict[str, float]] = {True: {}, False: {}}  # what bounds rows, and what needs no training
        for grid in grids:
            columns = [n for n, column in enumerate(grid.columns) if column.metric == metric]
            for number, entry in itertools.product(columns, grid.entries):
                value = entry.numbers[number]
                if value.value is None or not math.isfinite(value.value):
                    continue
                if entry.row is not None and grid.columns[number].sign != metric.sign:
                    continue  # what bounds the others is no point
                if entry.row is None or entry.is_bound:
                    references[entry.row is not None][entry.name] = value.value
                    continue
                fixed = {k: v for k, v in entry.choices.items() if k.rpartition(".")[2] not in STEP_KEYS}
                name, output = label_of(entry.name, fixed), entry.output or grid.columns[number].case
                line = lines.setdefault((entry.row.color, f"{name} · {output}"), (output, name, []))
                if (x := entry.numbers[place].value) is not None:
                    note = f"{metric.name} {value.text} {value.spread} at {x * unit:.3g} {cost}"
                    line[2].append(Point(x * unit, value.value, value.deviation, " ".join(note.split())))
        lines = _along_steps(lines)
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
        charts.append(
            Chart(metric.name, cost, drawn, _near(_best_of(references.values(), metric), drawn), is_logarithmic=True)
        )
    return charts


def _along_steps(lines: dict[tuple[int, str], Unnamed]) -> dict[tuple[int, str], Unnamed]:
    """Leave out single marks of other settings where the same output of the same weights has a line over its steps."""
    lined = {(color, output) for (color, _), (output, _, points) in lines.items() if len(points) > 1}
    return {key: line for key, line in lines.items() if len(line[2]) > 1 or (key[0], line[0]) not in lined}


def _best_of(several: Iterable[dict[str, float]], metric: Metric) -> dict[str, float]:
    """Take the best of each kind, so that few lines are drawn."""
    best = [max(kind.items(), key=lambda item: metric.sign * item[1]) for kind in several if kind]
    return dict(best)


def _near(references: dict[str, float], lines: Sequence[Line]) -> dict[str, float]:
    """Keep those that do not press what is drawn into a part of the chart."""
    values = [point.y for line in lines for point in line.points]
    if not values:
        return {}
    low, high = min(values), max(values)
    return {name: value for name, value in references.items() if 2 * low - high <= value <= 2 * high - low}


def _line_colors(lines: Iterable[tuple[int, str]]) -> dict[tuple[int, str], int]:
    """Keep the colours of the rows, unless several settings of the same weights would have the same one."""
    distinct = list(dict.fromkeys(lines))
    has_own = len({color for color, _ in distinct}) == len(distinct)
    return {line: line[0] if has_own else number for number, line in enumerate(distinct)}


def training_charts(table: Table, metrics: Sequence[Metric], cost: str, shown: Collection[int]) -> list[Chart]:
    """Draw the validation metrics of a table's runs over one of ``TRAINING_COSTS``, as means over the seeds.

    What was trained for another task of a study has test values here alone: they are horizontal lines.

    Args:
        shown: Numbers of trainings that are drawn elsewhere.
    """
    others = [row for row in table.rows if row.is_of_another_task(table.task)]
    trainings = trainings_of([row for row in table.rows if row.training not in shown and row not in others])
    charts = []
    dashes: dict[str, int] = {}
    for metric in metrics:
        lines = []
        for row in trainings.values():
            label = label_of(row.name, training_choices(row, trainings))
            for output in _drawn_outputs(row, metric):
                name = f"val/{value_name(metric.key, output)}"
                if points := _mean_curve([_curve(entry, name, cost) for entry in runs_of(row)]):
                    dash = dashes.setdefault(output, len(dashes))
                    lines.append(Line(f"{label} · {output}", points, row.color, dash, has_marks=False))
        references = {
            f"{row.label} {output}": value
            for row in others
            for output in row.own_outputs
            if (value := row.mean(value_name(metric.key, output))) is not None
        }
        charts.append(Chart(metric.name, cost, lines, references))
    return charts


def loss_charts(table: Table) -> list[Chart]:
    """Draw the loss of each training, one chart for those of a name: losses of different objectives are of no common scale."""
    trainings = trainings_of(table.rows)
    charts = []
    for name in dict.fromkeys(row.name for row in trainings.values()):
        lines = []
        for row in (row for row in trainings.values() if row.name == name):
            label = label_of(name, training_choices(row, trainings))
            for dash, (split, words) in enumerate((("train", "training"), ("val", "validation"))):
                curves = [_curve(entry, f"{split}/loss", IMAGES) for entry in runs_of(row)]
                if points := _mean_curve([_thinned(curve) for curve in curves]):
                    lines.append(Line(f"{label} · {words}", points, row.color, dash, has_marks=False))
        charts.append(Chart(f"Loss of {name}", IMAGES, lines))
    return charts


def trade_charts(table: Table, metrics: Sequence[Metric]) -> list[Chart]:
    """Draw metrics against those that guidance gives up for them, where both were measured at several settings.

    A line joins settings with equally many steps, in the order of the table.
    """
    charts = []
    for metric in metrics:
        for given_up in ordered(name for name in table.names if split_name(name)[0].startswith(metric.against or "/")):
            found: dict[tuple[int, str, str, str], list[Point]] = {}
            for row, case in [(each, case) for each in table.rows for case in _drawn_outputs(each, metric)]:
                name = _value_of(row, given_up)
                x, y = row.mean(name) if name else None, row.mean(value_name(metric.key, case))
                if x is not None and y is not None:
                    note = f"{row.label}: {metric.text(y)} at {given_up.text(x)}"
                    steps = str({k: v for k, v in row.choices.items() if k.rpartition(".")[2] in STEP_KEYS})
                    found.setdefault((row.color, row.name, case, steps), []).append(Point(x, y, None, note))
            curves = {key: points for key, points in found.items() if len(points) > 1}
            cases = list(dict.fromkeys(case for _, _, case, _ in curves))
            lines = [
                Line(f"{name} · {case}", points, color, cases.index(case))
                for (color, name, case, _), points in curves.items()
            ]
            charts.append(Chart(f"{metric.name} against {given_up.name}", given_up.name, lines))
    return charts


def rank_charts(table: Table) -> list[Chart]:
    """Draw the rank histograms of samples, a chart for what was ranked, as multiples of the share that is right.

    Those at the end of each training; of what was evaluated later alone, all.
    """
    found: dict[str, list[Line]] = {}
    dashes: dict[str, int] = {}
    ended = {row.training: row for row in reversed(table.rows) if any(e.folder == e.run.path for e in row.entries)}
    for row in (row for row in table.rows if ended.get(row.training, row) is row):
        for name, shares in _histograms(row.entries[0]).items():
            what, _, output = name.partition("/")
            last = max(1, len(shares) - 1)
            points = [Point(rank / last, share * len(shares)) for rank, share in enumerate(shares)]
            dash = dashes.setdefault(output, len(dashes))
            found.setdefault(what, []).append(Line(f"{row.label} · {output}", points, row.color, dash, has_marks=False))
    return [Chart(f"Ranks: {what}", "rank of the truth", lines, {"right": 1.0}) for what, lines in found.items()]


def _histograms(entry: Measured) -> dict[str, list[float]]:
    parts = [part.get("rank_histograms") for part in entry.record.values() if isinstance(part, dict)]
    return {
        str(name): [float(share) for share in shares]
        for part in parts
        for name, shares in (part.items() if isinstance(part, dict) else ())
        if isinstance(shares, list) and all(isinstance(share, int | float) for share in shares)
    }


def _value_of(row: Row, metric: Metric) -> str | None:
    """Return the name of the row's own value of a metric, of its first output that has one."""
    names = (value_name(metric.key, output) for output in row.own_outputs)
    return next((name for name in names if name in row.metrics), None)


def _drawn_outputs(row: Row, metric: Metric) -> list[str]:
    """Return the parts after the slash that are drawn: the paradigm's own outputs, or the cases but for bounds."""
    measured = [output for key, output in map(split_name, row.metrics) if key == metric.key]
    if metric.case:
        return sorted(set(measured) - set(metric.bounds))
    return [output for output in row.own_outputs if output in measured]


def _curve(entry: Measured, name: str, cost: str) -> list[tuple[float, float]]:
    """Read a logged scalar over what the training had cost by then; nothing where that is not known."""
    cost_at = training_cost(entry, cost == MINUTES)
    return [(cost_at(step), value) for step, value in logged_curve(entry.run.path, name)] if cost_at else []


def _thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Average neighbours, so that a line has about ``MAX_POINTS``."""
    size = max(1, len(curve) // MAX_POINTS)
    parts = [curve[start : start + size] for start in range(0, len(curve), size)]
    return [(statistics.fmean(x for x, _ in part), statistics.fmean(y for _, y in part)) for part in parts]


def _mean_curve(curves: Sequence[list[tuple[float, float]]]) -> list[Point]:
    """Average curves number by number of their points, as far as all go."""
    points = []
    for several in zip(*filter(None, curves), strict=False):
        values = [value for _, value in several]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        points.append(Point(statistics.fmean(x for x, _ in several), statistics.fmean(values), deviation))
    return points
