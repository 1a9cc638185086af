"""What a study's folder says of itself: ``study.json``, written by the runner and read by the comparison page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from launch.record_files import DamagedRecordError, check_shape, read_json
from launch.run_folder import write_json

NAME = "study.json"
CELL, BASELINE, JUDGE, TOKENIZER = ROLES = ("cell", "baseline", "judge", "tokenizer")
_SHAPE: dict[str, type | tuple[type, ...]] = {
    "study": str, "budget": str, "seeds": list, "seconds": (int, float), "settings": dict, "cells": list, "predictions": list,
}  # fmt: skip
_ENTRY: dict[str, type | tuple[type, ...]] = {
    "paradigm": str, "task": str, "role": str, "data": str, "seed": int, "run": str, "seconds": (int, float),
    "shared_seconds": (int, float), "steps": int, "images_per_second": (int, float), "parameters": int, "tuning_trials": int,
}  # fmt: skip
_SIDE: dict[str, type | tuple[type, ...]] = {
    "paradigm": str, "task": str, "role": str, "data": str, "output": str, "value": (int, float), "plus": (int, float),
}  # fmt: skip


@dataclass(frozen=True)
class StudyRun:
    """One training of a study: a cell, or what cells need.

    Attributes:
        paradigm: Name of its row, as the study's file has it; that of a baseline, a judge or a tokenizer is its own.
        task: ``generate``, ``restore`` or ``inpaint``; of a judge or tokenizer what it does.
        role: One of ``ROLES``.
        data: Name of its data set.
        seed: Seed of its training.
        run: Its run folder, relative to the study's.
        seconds: Seconds that its training is given, on one thread.
        shared_seconds: Its share of those of its tokenizer; the budget of a cell is both together.
        steps: Optimiser steps of its training; None until its speed was measured.
        images_per_second: Training images in a second of one thread, as measured before; None until then.
        parameters: Trained parameters; None until then.
        tuning_trials: Trainings that chose its settings.
    """

    paradigm: str
    task: str
    role: str
    data: str
    seed: int
    run: str
    seconds: float
    shared_seconds: float = 0.0
    steps: int | None = None
    images_per_second: float | None = None
    parameters: int | None = None
    tuning_trials: int = 0


@dataclass(frozen=True)
class Side:
    """What one side of a prediction names: the output of a cell or baseline, or a number.

    Attributes:
        paradigm: See ``StudyRun``.
        task: See ``StudyRun``.
        role: See ``StudyRun``.
        data: See ``StudyRun``; empty where the study has one data set.
        output: Part of the metric's name behind the slash, such as ``mean`` or ``test``.
        value: A number, in place of all of these.
        plus: What is added to the side's value: a margin.
    """

    paradigm: str = ""
    task: str = ""
    role: str = CELL
    data: str = ""
    output: str = ""
    value: float | None = None
    plus: float = 0.0

    def matches(self, run: StudyRun) -> bool:
        """Say whether a run is of what this side names."""
        own = (self.paradigm, self.task, self.role)
        return self.value is None and own == (run.paradigm, run.task, run.role) and self.data in ("", run.data)


@dataclass(frozen=True)
class Prediction:
    """A statement written before the run: the metric is higher on one side than on the other, whichever is better.

    Attributes:
        claim: The statement in words.
        metric: Name of the metric without its output, such as ``psnr``.
        above: The side where it is said to be higher.
        below: The other side.
    """

    claim: str
    metric: str
    above: Side
    below: Side


@dataclass(frozen=True)
class Study:
    """A study as its folder records it.

    Attributes:
        study: Name of the study: its file in ``conf/study``.
        budget: Name of its budget.
        seeds: Seeds of the trainings of cells and baselines.
        seconds: Seconds of one thread that each cell is given, its share of a tokenizer's included.
        settings: All settings that it was begun with.
    """

    study: str
    budget: str
    seeds: tuple[int, ...]
    seconds: float
    settings: Mapping[str, Any]
    runs: tuple[StudyRun, ...]
    predictions: tuple[Prediction, ...]

    def write(self, folder: Path) -> None:
        """Write ``study.json``."""
        content = {
            "study": self.study,
            "budget": self.budget,
            "seeds": list(self.seeds),
            "seconds": self.seconds,
            "cells": [asdict(run) for run in self.runs],
            "predictions": [
                {"claim": p.claim, "metric": p.metric, "above": _written(p.above), "below": _written(p.below)}
                for p in self.predictions
            ],
            "settings": dict(self.settings),
        }
        write_json(folder / NAME, content)


def read_study(folder: Path) -> Study | None:
    """Read the record of a study.

    Args:
        folder: Its folder.

    Returns:
        The study, or None where the folder is none of a study.

    Raises:
        DamagedRecordError: The record cannot be read, or is something else.
    """
    path = folder / NAME
    if not path.exists():
        return None
    content = read_json(path, "settings")
    check_shape(path, content, _SHAPE)
    try:
        runs = tuple(StudyRun(**_checked(path, entry, _ENTRY, StudyRun)) for entry in content["cells"])
        predictions = tuple(read_prediction(path, entry) for entry in content["predictions"])
        return Study(
            content["study"],
            content["budget"],
            tuple(map(int, content["seeds"])),
            content["seconds"],
            content["settings"],
            runs,
            predictions,
        )
    except (KeyError, TypeError) as error:
        raise DamagedRecordError(path, f"{error} is missing, or of another kind") from error


def read_prediction(path: Path, entry: Any) -> Prediction:
    """Read a prediction, as a study's file and its record have it.

    Args:
        path: The file, for messages.

    Raises:
        DamagedRecordError: It is none.
    """
    kinds: dict[str, type | tuple[type, ...]] = {"claim": str, "metric": str, "above": dict, "below": dict}
    known = _checked(path, entry, kinds, Prediction)
    sides = {name: Side(**_checked(path, known[name], _SIDE, Side)) for name in ("above", "below")}
    return Prediction(known["claim"], known["metric"], **sides)


def _checked(path: Path, entry: Any, shape: Mapping[str, type | tuple[type, ...]], kind: type) -> dict[str, Any]:
    """Return an entry's known keys, of the kinds that they were written as; a newer version may have more."""
    if not isinstance(entry, dict):
        raise DamagedRecordError(path, "an entry is no JSON object")
    check_shape(path, {key: value for key, value in entry.items() if value is not None}, shape)
    names = {field.name for field in fields(kind)}
    return {key: value for key, value in entry.items() if key in names}


def _written(side: Side) -> dict[str, Any]:
    return {key: value for key, value in asdict(side).items() if value not in (None, "", 0.0)}
