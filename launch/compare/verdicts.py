"""What a study tells: who is ahead in a task and why, and which of the predictions came true.

A winner is named only where the paired intervals of its differences to all others exclude zero in every seed. Why another one
is behind is said in sentences of a fixed list, each of which is a measurement; what was not measured is not said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from generative.metrics.bootstrap import Interval
from generative.metrics.catalogue import Metric, metric_of, ordered, output_order, split_name, value_name
from launch.compare.intervals import JOIN, by_seed, differences, interval_of, is_ahead, value_of
from launch.compare.reading import Measured, logged_curve
from launch.compare.rows import Row
from launch.judge import judge_of
from launch.study.record import Prediction, Side

LAST_PART = 0.75  # of a training, behind which it should gain nothing any more
MIN_GAIN = 0.1  # of what it is behind, below which that is no reason
MIN_SEEDS = 3  # that must agree where images were not kept
Outcome = Literal["came true", "failed", "cannot be told"]


@dataclass(frozen=True)
class Competitor:
    """A paradigm in a task, or a baseline beside it.

    Attributes:
        entries: Its evaluations at the end of training, one a seed.
        others: Its evaluations at other settings.
    """

    name: str
    entries: list[Measured]
    others: list[Measured]

    @property
    def row(self) -> Row:
        """Its evaluations as a row of a table."""
        return Row(self.name, {}, self.entries)

    def name_of(self, metric: Metric) -> str:
        """Return the name of its value of a metric, all cases but bounds together; empty where it has none."""
        known = {output for key, output in map(split_name, self.entries[0].metrics) if key == metric.key}
        if metric.case:
            cases = sorted(known - set(metric.bounds), key=output_order)
            return value_name(metric.key, JOIN.join(cases)) if cases else ""
        return value_name(metric.key, metric.output) if metric.output in known else ""

    def value(self, metric: Metric) -> float | None:
        """Return its mean over the seeds."""
        name = self.name_of(metric)
        values = [value_of(entry, name) for entry in self.entries] if name else []
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known and len(known) == len(values) else None

    def interval(self, metric: Metric) -> Interval | None:
        """Return the same with its interval."""
        name = self.name_of(metric)
        return interval_of(self.entries, name) if name else None


def main_metrics(task: str, entries: Sequence[Measured]) -> list[Metric]:
    """Return the first answers to how good a task is done, of those that were measured."""
    return [metric for metric in ordered(name for entry in entries for name in entry.metrics) if task in metric.main_of]


@dataclass(frozen=True)
class Verdict:
    """Who is ahead in a metric.

    Attributes:
        winner: Name of the one; empty where none is told.
        text: That in a sentence, with the interval to the next.
        reasons: Why the others are behind, a sentence each.
    """

    metric: Metric
    winner: str
    text: str
    reasons: dict[str, str]


def verdict_on(metric: Metric, competitors: Sequence[Competitor]) -> Verdict:
    """Compare competitors in a metric that has a better side."""
    valued = [(each, each.value(metric)) for each in competitors]
    found = sorted(
        ((each, value) for each, value in valued if value is not None and math.isfinite(value)),
        key=lambda item: -metric.sign * item[1],
    )
    if len(found) < 2:
        return Verdict(metric, "", f"{metric.name}: measured of fewer than two, so nothing is compared.", {})
    (best, top), *rest = found
    name, (second, value) = best.name_of(metric), rest[0]
    known = [each for each, _ in rest if differences(best.entries, each.entries, name, each.name_of(metric))]
    if len(known) < len(rest):
        missing = next(each.name for each, _ in rest if each not in known)
        text = f"{metric.name}: no winner can be told, as {best.name} and {missing} have no values of the same images."
        return Verdict(metric, "", text, {})
    gap = _span(metric, differences(best.entries, second.entries, name, second.name_of(metric)))
    if not all(is_ahead(best.entries, each.entries, name, metric.sign, each.name_of(metric)) for each, _ in rest):
        text = (
            f"{metric.name}: no winner, {best.name} {metric.text(top)} and {second.name} {metric.text(value)} ({gap})."
        )
        return Verdict(metric, "", text, {})
    text = (
        f"{metric.name}: {best.name} is ahead with {metric.text(top)}, {second.name} has {metric.text(value)} ({gap})."
    )
    reasons = {each.name: _reason(metric, each, value, top) for each, value in rest}
    return Verdict(metric, best.name, text, {name: reason for name, reason in reasons.items() if reason})


def _span(metric: Metric, found: Sequence[Interval]) -> str:
    """Write the intervals of a difference, the widest range over the seeds."""
    low, high = min(each.low for each in found), max(each.high for each in found)
    text = f"difference {_signed(metric, low)} to {_signed(metric, high)}"
    return text + (f" over {len(found)} seeds" if len(found) > 1 else "")


def _signed(metric: Metric, value: float) -> str:
    text = metric.text(value)
    return text if text.startswith("-") else f"+{text}"


# Why one is behind: a fixed list, the first that applies


def _reason(metric: Metric, behind: Competitor, value: float, top: float) -> str:
    for reason in (_bounded, _not_converged, _off_nominal, _traded):
        if text := reason(metric, behind, value, top):
            return text
    return ""


def _bounded(metric: Metric, behind: Competitor, value: float, top: float) -> str:
    """Whether what bounds it, as what its tokens can show, is itself behind the best."""
    row, metrics = behind.row, behind.entries[0].metrics
    outputs = {output for key, output in map(split_name, metrics) if key == metric.key}
    outputs &= set(metric.bounds) if metric.case else outputs - {*row.floors, *row.own_outputs}
    bounds = {output: metrics[value_name(metric.key, output)] for output in outputs}
    bound = max(bounds, key=lambda output: metric.sign * bounds[output], default="")
    if not bound or not metric.sign * value <= metric.sign * bounds[bound] <= metric.sign * top:
        return ""
    return f"bounded: its {bound} itself reaches {metric.text(bounds[bound])}"


def _not_converged(metric: Metric, behind: Competitor, value: float, top: float) -> str:
    """Whether validation still gained in the last quarter of its training."""
    gains = []
    for entry in behind.entries:
        key, output = split_name(behind.name_of(metric))
        curves = [logged_curve(entry.run.path, f"val/{value_name(key, case)}") for case in output.split(JOIN)]
        steps = entry.record.get("step") or 0
        early = [max((p for p in curve if p[0] <= LAST_PART * steps), default=None) for curve in curves]
        if not all(curves) or None in early:
            return ""
        gains.append(sum(c[-1][1] - e[1] for c, e in zip(curves, early, strict=True) if e) / len(curves))
    gain = metric.sign * sum(gains) / len(gains)
    if gain <= MIN_GAIN * abs(top - value):
        return ""
    return f"not converged: in the last quarter of training validation still gained {metric.text(gain)} {metric.unit}".strip()


def _off_nominal(metric: Metric, behind: Competitor, value: float, top: float) -> str:
    """Whether the output is not calibrated, by a metric that says what is right."""
    metrics = behind.entries[0].metrics
    for other in (each for each in ordered(metrics) if each.nominal is not None):
        number = metrics.get(value_name(other.key, metric.output))
        if number is not None and other.nominal is not None and number < (1 - MIN_GAIN) * other.nominal:
            return f"{other.sides[0]}: {other.words.lower()} {other.text(number)}, and {other.nominal:g} is right"
    return ""


def _traded(metric: Metric, behind: Competitor, value: float, top: float) -> str:
    """Whether guidance, as measured at other settings, gives up something else for this metric."""
    entries = [*behind.entries[:1], *behind.others]
    names = {name for name in behind.entries[0].metrics if metric.against and name.startswith(f"{metric.against}_")}
    for name in sorted(names):
        pairs = [(value_of(e, name), value_of(e, behind.name_of(metric))) for e in entries if name in e.metrics]
        known = [(given, own) for given, own in pairs if given is not None and own is not None]
        best, least = max(known, key=lambda p: metric.sign * p[1]), min(known, key=lambda p: metric.sign * p[1])
        if len(known) > 1 and best[0] < least[0]:
            other = metric_of(split_name(name)[0])
            return (
                f"guidance trades {other.words.lower()}: {metric.text(least[1])} to {metric.text(best[1])} costs "
                f"{other.text(least[0])} to {other.text(best[0])}"
            )
    return ""


# Predictions


def outcome_of(prediction: Prediction, sides: tuple[list[Measured], list[Measured]]) -> tuple[Outcome, str]:
    """Say what became of a prediction.

    Args:
        sides: The evaluations that its two sides are of; none of a side that is a number.

    Returns:
        The outcome, and what was measured in a few words.
    """
    metric, (above, below) = metric_of(prediction.metric), (prediction.above, prediction.below)
    for side, entries in zip((above, below), sides, strict=True):
        if side.value is None and not entries:
            return "cannot be told", f"{side.paradigm} {side.task} has no results"
    values = [_values(metric, side, entries) for side, entries in zip((above, below), sides, strict=True)]
    if not all(values):
        return "cannot be told", f"{metric.words} was not measured"
    plus = above.plus - below.plus + (above.value or 0.0) - (below.value or 0.0)
    shown = " and ".join(metric.text(sum(each) / len(each)) for each in values)
    found = [Interval(i.low + plus, i.value + plus, i.high + plus) for i in _intervals(metric, prediction, sides)]
    if not found:
        if len({judge_of(entry.judges, metric.key) for entries in sides for entry in entries}) > 1:
            return "cannot be told", f"{shown}, judged by different classifiers"
        seeds = [a - b for a, b in zip(*values, strict=False)]
        found = [Interval(d, d, d) for d in seeds] if len(seeds) >= MIN_SEEDS else []
        if not found:
            return "cannot be told", f"{shown}, without values of the same images"
    shown = f"{shown}, {_span(metric, found)}"
    if all(each.low > 0 for each in found):
        return "came true", shown
    return ("failed" if all(each.high < 0 for each in found) else "cannot be told"), shown


def _values(metric: Metric, side: Side, entries: Sequence[Measured]) -> list[float]:
    if side.value is not None:
        return [side.value + side.plus]
    name = value_name(metric.key, side.output)
    values = [value_of(entry, name) for entry in by_seed(entries).values()]
    return [value + side.plus for value in values if value is not None]


def _intervals(metric: Metric, prediction: Prediction, sides: tuple[list[Measured], list[Measured]]) -> list[Interval]:
    first, second = (value_name(metric.key, side.output) for side in (prediction.above, prediction.below))
    if sides[0] and sides[1]:
        return differences(sides[0], sides[1], first, second)
    entries, name, sign = (sides[0], first, 1) if sides[0] else (sides[1], second, -1)
    found = [interval_of([entry], name) for entry in by_seed(entries).values()]
    known = [i if sign > 0 else Interval(-i.high, -i.value, -i.low) for i in found if i is not None]
    return known if len(known) == len(found) else []
