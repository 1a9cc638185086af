"""What can be told from chance: intervals over test images of values and of differences, paired by image and seed."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from generative.metrics.bootstrap import Interval, bootstrap
from generative.metrics.by_image import ImageValues, joined
from generative.metrics.catalogue import metric_of, split_name, value_name
from launch.compare.reading import Measured
from launch.judge import judge_of

JOIN = "+"  # between cases that are taken together


def parts_of(entry: Measured, name: str) -> ImageValues | None:
    """Return what the images have added to a value, ``<metric>/<output>``; None where that was not kept.

    Of a metric by case several cases with + between them stand for all their images together.
    """
    key, output = split_name(name)
    pooled = metric_of(key).pooled
    found = [entry.by_image.get(value_name(pooled.key if pooled else key, case)) for case in output.split(JOIN)]
    known = [each for each in found if each is not None]
    return joined(known) if known and len(known) == len(found) else None


def value_of(entry: Measured, name: str) -> float | None:
    """Return a value, also of several cases together; None where it was not measured."""
    key, output = split_name(name)
    values = [entry.metrics.get(value_name(key, case)) for case in output.split(JOIN)]
    parts = parts_of(entry, name) if len(values) > 1 else None
    if parts is not None and None not in values:
        return parts.mean.item()
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def by_seed(entries: Iterable[Measured]) -> dict[int, Measured]:
    """Return one evaluation for each training seed."""
    found: dict[int, Measured] = {}
    for entry in sorted(entries, key=lambda each: (each.seed, str(each.evaluation_seed))):
        found.setdefault(entry.seed, entry)
    return found


def interval_of(entries: Sequence[Measured], name: str) -> Interval | None:
    """Return the mean over the training seeds of a value with its interval over test images; None where that is not known."""
    parts = [parts_of(entry, name) for entry in by_seed(entries).values()]
    known = [each for each in parts if each is not None]
    if not known or len(known) < len(parts):
        return None
    return bootstrap([(1 / len(known), each) for each in known], _function(name))


def differences(a: Sequence[Measured], b: Sequence[Measured], name: str, other: str = "") -> list[Interval]:
    """Return by how much a value of one side is above that of the other, for every pair of seeds.

    Seeds that both have are paired with themselves; with different seeds each is paired with each.

    Args:
        name: The value of the first side, ``<metric>/<output>``.
        other: That of the second side, where it is another output.

    Returns:
        The intervals; none where one of them is not known, as the images or their draws are not the same.
    """
    first, second = by_seed(a), by_seed(b)
    seeds = [(s, s) for s in first] if first.keys() == second.keys() else list(itertools.product(first, second))
    found = [_difference(first[s], second[t], name, other or name) for s, t in seeds]
    known = [each for each in found if each is not None]
    return known if len(known) == len(found) else []


def is_ahead(a: Sequence[Measured], b: Sequence[Measured], name: str, sign: int, other: str = "") -> bool:
    """Say whether the better side of a value is told from chance: all intervals of the difference lie on one side of zero.

    Args:
        sign: 1 where higher is better, -1 where lower is.
        other: The value of the second side, where it is another output.
    """
    found = differences(a, b, name, other)
    return bool(found) and all(each.excludes_zero and each.value * sign > 0 for each in found)


def _difference(a: Measured, b: Measured, name: str, other: str) -> Interval | None:
    parts, others = parts_of(a, name), parts_of(b, other)
    if parts is None or others is None or _draws(a, name) != _draws(b, other):
        return None
    return bootstrap([(1.0, parts), (-1.0, others)], _function(name))


def _function(name: str) -> Callable[[Tensor], Tensor] | None:
    pooled = metric_of(split_name(name)[0]).pooled
    return pooled.value if pooled else None


def _draws(entry: Measured, name: str) -> Any:
    """Identify what an index stands for: a test image with its degradation, or a set of labels; and who judged it."""
    data, (key, _) = entry.record.get("data", {}), split_name(name)
    judge = judge_of(entry.judges, key)
    if metric_of(key).case:
        return data.get("fingerprints", {}).get("label_sets"), judge
    return data.get("fingerprint"), data.get("evaluation_seed"), judge
