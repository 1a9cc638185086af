"""What the record log measures: trainings, and the quality that each must reach on data that never change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from generative.metrics.catalogue import metric_of, split_name, spoken
from launch.errors import RunFailedError, UserError
from launch.results import Result, Row


@dataclass(frozen=True)
class Part:
    """A network that is trained first.

    Attributes:
        key: The config key that names it.
        experiment: What trains it.
        counts: Whether its seconds belong to the record; not those of a judge.
    """

    key: str
    experiment: str
    counts: bool


@dataclass(frozen=True)
class Task:
    """A training and the quality that it must reach.

    Attributes:
        arguments: The training.
        targets: By name of a metric in ``metrics.json``, the value from which on it is reached.
        fingerprints: Those of the data that the figures come of: how many images validate is no part of them.
        conditions: What else the record of ``metrics.json`` must say, by dotted key: figures of all days are of the same thing.
        part: What is trained first where none is named.
    """

    arguments: tuple[str, ...]
    targets: dict[str, float]
    fingerprints: dict[str, str]
    conditions: dict[str, Any]
    part: Part | None = None


SCENES = {"train": "d1c9af6758a59132", "test": "2a35564236c5edc3", "label_sets": "2eb69541011cabef"}
TASKS = {
    "mnist_mixed": Task(
        ("experiment=meanflow_dit", "data=mnist"),
        {"psnr/mean": 26.0, "psnr/sample": 23.5},
        {"train": "f3d177b8fde4511e", "test": "176a8c158dcd23fb"},
        {
            "weights": "ema", "evaluation_seed": 0, "evaluation.split": "test", "evaluation.num_images": 10_000,
            "sampling.num_steps": 1, "degradation.steps.noise.std.evaluation": 0.7,
            "degradation.steps.salt_pepper.amount.evaluation": 0.1, "degradation.steps.block.size.evaluation": 10,
            "degradation.weights": None,
        },
    ),
    "scenes_labels": Task(
        ("experiment=ddpm_scenes",),
        {"label_accuracy/test": 0.95, "label_accuracy/new_test": 0.92, "label_accuracy/real": 0.985},
        SCENES,
        {
            "weights": "ema", "evaluation_seed": 0, "label_accuracy.num_seeds": 16, "label_accuracy.num_real": 1000,
            "label_accuracy.assisted": False,
        },
        Part("classifier", "label_classifier", counts=False),
    ),
    "scenes_holes": Task(
        ("experiment=maskgit_scenes",),
        {"psnr_hole/sample": 27.0},
        SCENES,
        {
            "weights": "ema", "evaluation_seed": 0, "evaluation.split": "test", "evaluation.num_images": 2000,
            "degradation.steps.block.size.evaluation": 12, "degradation.steps.brush.num_strokes.evaluation": 2,
            "degradation.steps.brush.width.evaluation": 4.0, "degradation.steps.brush.length.evaluation": 7.0,
            "degradation.weights": None,
        },
        Part("tokenizer", "vqgan_scenes", counts=True),
    ),
}  # fmt: skip


def check_conditions(task: Task, record: Mapping[str, Any]) -> None:
    """Check that figures were measured as a task says.

    Args:
        record: That of a ``metrics.json``.

    Raises:
        UserError: They were not.
    """
    fingerprints = {f"data.fingerprints.{name}": value for name, value in task.fingerprints.items()}
    for key, expected in (fingerprints | task.conditions).items():
        found: Any = record
        for name in key.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
        if found != expected:
            raise UserError(f"another task was measured: {key} is {found} and must be {expected}; nothing is recorded.")


def check_reached(task: Task, row: Row[Result]) -> None:
    """Check that the means over the seeds reach the figures of a task.

    Raises:
        RunFailedError: They do not.
    """
    missed = []
    for name, target in task.targets.items():
        metric, mean = metric_of(split_name(name)[0]), row.mean(name)
        if mean is None:
            missed.append(f"{spoken(name)} was not measured")
        elif not mean * metric.sign >= target * metric.sign:
            missed.append(f"{spoken(name)} is {mean:.4f} and not {target:g}")
    if missed:
        raise RunFailedError(f"The quality is not reached: {'; '.join(missed)}; nothing is recorded.")
