"""Evaluations sorted into tables of what can be compared, and averaged over seeds into rows.

A table is of the same images with the same degradation, the same kind of weights and the same judges; a row is of the same
settings. The spread of a row is that over its training seeds; with one training seed, that over its evaluation seeds.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from launch import results
from launch.compare.reading import LeftOut, Measured, newest_first
from launch.errors import UserError, near_matches
from launch.judge import differing_judges
from launch.settings import ABSENT, TARGET, distinguishing, value_at

JUDGE_DIGITS = 8  # of a hash, in words
INPUT = "degraded"  # an output that is the input: it is the same for all rows and does not compete


@dataclass
class Row(results.Row[Measured]):
    """Evaluations of the same settings, as the page shows them.

    Attributes:
        training: Number of what was trained: rows of the same weights have the same.
        color: Number of the row's colour.
        merged: Keys with several values that were averaged over, as ``by`` asked.
        shown: Those of the choices that the page shows: not those that most rows of the name share.
    """

    training: int = 0
    color: int = 0
    merged: list[str] = field(default_factory=list)
    shown: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The row in words."""
        return label_of(self.name, self.shown)

    @property
    def own_outputs(self) -> list[str]:
        """Outputs that the paradigm makes in use, not the bounds of evaluation; records that do not say so: all."""
        calls = self.entries[0].record.get("sampling", {}).get("num_network_calls")
        return list(calls) if calls else [output for output in self.outputs if output not in self.floors]

    def is_of_another_task(self, task: str) -> bool:
        """Say whether a study trained it for something else than the task that it is shown in."""
        planned = self.entries[0].planned
        return bool(task and planned and planned.task != task)

    @property
    def floors(self) -> dict[str, str]:
        """Outputs that need no training, such as the input itself, in words."""
        measured = self.entries[0].record.values()
        named = [part.get("without_training") for part in measured if isinstance(part, dict)]
        return {INPUT: "degraded input"} | {
            k: str(v) for each in named if isinstance(each, dict) for k, v in each.items()
        }

    @property
    def training_seeds(self) -> list[int]:
        return sorted({entry.seed for entry in self.entries})

    @property
    def evaluation_seeds(self) -> list[Any]:
        return sorted({entry.evaluation_seed for entry in self.entries}, key=str)

    def sampling(self, kind: str, output: str) -> float | None:
        """Return what a sample costs (``num_network_calls`` or ``seconds_per_image``), the median over the entries."""
        found = [e.record.get("sampling", {}).get(kind, {}).get(output) for e in self.entries]
        values = [float(value) for value in found if value is not None]
        return statistics.median(values) if values else None


@dataclass
class Table:
    """Rows that can be compared.

    Attributes:
        conditions: What they have in common, by its name.
        task: Of a study, the task that it is of.
        judges: The hash of the network that judged a metric, by the metric's key: the same in all rows that have it.
        judge: The judge in words, where that alone tells the table from another one.
    """

    conditions: dict[str, Any]
    rows: list[Row]
    task: str = ""
    judges: dict[str, str] = field(default_factory=dict)
    judge: str = ""

    @property
    def words(self) -> list[str]:
        """The conditions in words, some of which may be empty."""
        c = self.conditions
        about = [f"{c['data']} {c['size']}x{c['size']}", c["degradation_name"], c["images"], f"{c['weights']} weights"]
        about.append(self.judge)
        return [self.task.capitalize(), *about]

    @property
    def title(self) -> str:
        """The conditions in a line."""
        return " · ".join(filter(None, self.words))

    @property
    def anchor(self) -> str:
        """The conditions as a part of an address."""
        return "-".join(re.findall(r"[a-z0-9]+", f"{self.title} {self.conditions['fingerprint']}".lower()))

    @property
    def names(self) -> set[str]:
        """Everything that was measured, as ``<metric>/<output>``."""
        return {name for row in self.rows for name in row.metrics}


def conditions_of(entry: Measured) -> dict[str, Any]:
    """Say what an evaluation was made on: data, degradation, number of images and weights."""
    record = entry.record
    data, degradation = record.get("data", {}), record.get("degradation")
    return {
        "data": data.get("name", "data"),
        "size": data.get("image_size"),
        "fingerprint": data.get("fingerprint"),
        "degradation": _in_evaluation(degradation),
        "degradation_name": _degradation_name(degradation),
        "images": _counted([part for part in record.values() if isinstance(part, dict)], bool(degradation)),
        "weights": "EMA" if record.get("weights") == "ema" else "raw",
    }


def _counted(parts: Sequence[dict[str, Any]], of_split: bool) -> str:
    """Say how many images were measured, of several measurements the most; or draws of labels.

    Args:
        of_split: Whether the images of a split come first, as they were degraded, and not those that were drawn.
    """
    images, draws = (
        [part for part in parts if isinstance(part.get(key), int) and part[key] > 0]
        for key in ("num_images", "num_seeds")
    )
    if images:
        most = max(images, key=lambda part: (("split" in part) == of_split, part["num_images"]))
        return " ".join(filter(None, [f"{most['num_images']:,}", most.get("split"), "images"]))
    return f"{draws[0]['num_seeds']} draws of each label set" if draws else ""


def _in_evaluation(value: Any) -> Any:
    """Return the settings of a degradation that matter in evaluation: of a range for training only its counterpart."""
    if isinstance(value, dict):
        if value.keys() == {"train", "evaluation"}:
            return value["evaluation"]
        return {key: _in_evaluation(child) for key, child in value.items()}
    return value


def _degradation_name(degradation: dict[str, Any] | None) -> str:
    if not degradation:
        return ""
    steps = degradation.get("steps") or {}
    return " or ".join(steps) if str(degradation.get(TARGET, "")).endswith("Mixture") else ", ".join(steps)


def tables_of(measured: Sequence[Measured], by: Sequence[str]) -> tuple[list[Table], list[LeftOut]]:
    """Sort evaluations into tables and rows.

    Args:
        measured: The evaluations.
        by: Config keys that tell rows of a name apart, or none for those in which they differ.

    Returns:
        The tables, the one with most rows first, and repeated evaluations, which count once.
    """
    measured, repeated = _without_repeated(measured)
    _check_keys(measured, by)
    choices, merged = _choices(measured, by)
    tables = []
    for numbers, judges in _comparable(measured):
        rows: dict[tuple[Any, ...], Row] = {}
        for number in numbers:
            entry = measured[number]
            key = (entry.name, *choices[number].items())
            row = rows.setdefault(key, Row(entry.name, choices[number], [], merged=merged.get(entry.name, [])))
            row.entries.append(entry)
        sorted_rows = sorted(rows.values(), key=lambda row: (row.name, [natural(v) for v in row.choices.values()]))
        tables.append(Table(conditions_of(measured[numbers[0]]), sorted_rows, judges=judges))
        _shorten(sorted_rows)
    for table, other in itertools.permutations(tables, 2):
        if table.conditions == other.conditions and (differing := differing_judges(table.judges, other.judges)):
            table.judge = f"judge {differing[0][:JUDGE_DIGITS]}"
    tables.sort(key=lambda table: (-len({row.name for row in table.rows}), -len(table.rows)))
    _number_trainings([row for table in tables for row in table.rows])
    return tables, repeated


def _comparable(measured: Sequence[Measured]) -> list[tuple[list[int], dict[str, str]]]:
    """Sort evaluations by their conditions, and by the networks that judged them where the same metric has several.

    Returns:
        The numbers of those that can be compared, with what judged their metrics.
    """
    groups: dict[str, list[tuple[list[int], dict[str, str]]]] = {}
    for number, entry in enumerate(measured):
        known = groups.setdefault(str(conditions_of(entry)), [])
        fitting = next((each for each in known if not differing_judges(each[1], entry.judges)), None)
        if fitting is None:
            known.append(fitting := ([], {}))
        fitting[0].append(number)
        fitting[1].update(entry.judges)
    return [group for known in groups.values() for group in known]


def _shorten(rows: Sequence[Row]) -> None:
    """Choose what to show: a value that more than half of the rows of a name have goes without saying."""
    for row in rows:
        same = [other for other in rows if other.name == row.name]
        for key, value in row.choices.items():
            if 2 * sum(other.choices[key] == value for other in same) <= len(same):
                row.shown[key] = value
    for row in rows:  # where a row would have nothing left, what others show tells it
        told = {key for other in rows if other.name == row.name for key in other.shown}
        if not row.shown and len(told) == 1:
            row.shown = {key: row.choices[key] for key in told}


def label_of(name: str, choices: Mapping[str, str]) -> str:
    """Write a name with what tells it from others of the name."""
    return " ".join([name, *(f"{key}={value}" for key, value in choices.items() if value != ABSENT)])


class Choosing(Protocol):
    """A line that shows choices."""

    choices: dict[str, str]


ChoosingT = TypeVar("ChoosingT", bound=Choosing)


def joined(lines: Iterable[ChoosingT], is_same: Callable[[ChoosingT, ChoosingT], bool]) -> list[ChoosingT]:
    """Join lines that show the same and keep the choices that all have: the others do not bear on it."""
    kept: list[ChoosingT] = []
    for line in lines:
        first = next((other for other in kept if is_same(line, other)), None)
        if first is None:
            kept.append(line)
        else:
            first.choices = {k: v for k, v in first.choices.items() if line.choices.get(k) == v}
    return kept


def natural(text: str) -> tuple[float, str]:
    """Return the key by which values are sorted: numbers by size, before words."""
    try:
        return float(text), ""
    except ValueError:
        return float("inf"), text


def _without_repeated(measured: Sequence[Measured]) -> tuple[list[Measured], list[LeftOut]]:
    """Keep the newest of those evaluations that are of the same settings, seeds and conditions."""
    kept: dict[str, list[Measured]] = {}
    repeated = []
    for entry in newest_first(measured):
        key = str((entry.name, entry.settings, entry.seed, entry.evaluation_seed, conditions_of(entry)))
        later = [each for each in kept.setdefault(key, []) if not differing_judges(each.judges, entry.judges)]
        if later:
            reason = f"the same settings and seeds were evaluated later: {later[0].folder}"
            repeated.append(LeftOut(entry.folder, entry.name, "not used", entry.record.get("step"), None, reason))
        else:
            kept[key].append(entry)
    newest = list(itertools.chain.from_iterable(kept.values()))
    return [entry for entry in measured if any(entry is other for other in newest)], repeated


def _check_keys(measured: Sequence[Measured], by: Sequence[str]) -> None:
    keys = {key for entry in measured for key in entry.settings}
    known = {part for key in keys for part in itertools.accumulate(key.split("."), "{}.{}".format)}
    for key in by:
        if key not in known and key not in ("name", "experiment"):
            raise UserError(f"by={key} is no config key of these runs: {near_matches(key, known)}")


def _choices(measured: Sequence[Measured], by: Sequence[str]) -> tuple[list[dict[str, str]], dict[str, list[str]]]:
    """Return what tells each evaluation from others of its name, and by name the keys that are averaged over."""
    names = {entry.name: [e.settings for e in measured if e.name == entry.name] for entry in measured}
    merged: dict[str, list[str]] = {}
    keys: dict[str, list[str]] = {}
    for name, several in names.items():
        different = distinguishing(several)
        if by:
            keys[name] = [key for key in by if key not in ("name", "experiment")]
            under = tuple(f"{key}." for key in keys[name])
            merged[name] = [k for k in different if k not in keys[name] and not k.startswith(under)]
        else:
            keys[name] = different
    several = [entry.settings for entry in measured]
    found = [
        {key: value_at(e.settings, key, several if by else names[e.name]) for key in keys[e.name]} for e in measured
    ]
    return found, merged


def _number_trainings(rows: Sequence[Row]) -> None:
    """Number rows that share runs, each such set by another number, which is its colour, too."""
    sets: list[set[Path]] = []
    for row in rows:
        runs = {entry.run.path for entry in row.entries}
        for other in [each for each in sets if each & runs]:
            sets.remove(other)
            runs |= other
        sets.append(runs)
    order: list[set[Path]] = []
    for row in rows:
        own = next(each for each in sets if row.entries[0].run.path in each)
        if own not in order:
            order.append(own)
        row.training = row.color = order.index(own)
