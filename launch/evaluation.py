"""The one evaluation that ends a training and that ``evaluate.py`` repeats."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from callbacks import EMA
from callbacks.measuring import Measurement, MeasuringCallback
from datamodules.base import ImageDataModule
from generative.metrics.by_image import ImageValues
from generative.metrics.layouts import layouts
from launch.build import plain_config
from launch.by_image_csv import write_by_image
from launch.record import hardware, now
from launch.run_folder import write_json
from launch.sampling_time import time_record
from lightning_modules import GenerativeModule, TrainingModule

KEEPS_WEIGHTS = (EMA, WeightAveraging, Checkpoint)
TEST_HOOKS = [name for name in dir(Callback) if name.startswith("on_test_")]

RUN_FOLDER = "run folder: "  # begins the line that names it


def takes_part_in_test(callback: Callback) -> bool:
    """Say whether a callback measures, draws or reports in a test, going by what it is and not by its name.

    What keeps the weights of a training (averages, checkpoints) has hooks there too, and nothing to do without a training.
    """
    if isinstance(callback, KEEPS_WEIGHTS):
        return False
    return isinstance(callback, Measurement) or has_test_hooks(type(callback))


def has_test_hooks(kind: type[Callback]) -> bool:
    """Say whether callbacks of a class do something in a test, the same of each; see ``takes_part_in_test``."""
    return not issubclass(kind, KEEPS_WEIGHTS) and any(
        getattr(kind, name) is not getattr(Callback, name) for name in TEST_HOOKS
    )


def run_test(
    trainer: Trainer, module: TrainingModule, datamodule: ImageDataModule, config: DictConfig, weights: str, step: int
) -> dict[str, Any]:
    """Evaluate on the test images.

    Args:
        trainer: Trainer with the evaluation callbacks.
        module: The module; an EMA callback of the trainer swaps its weights in.
        config: The config that all was built from.
        weights: ``ema`` or ``raw``: what is being evaluated.
        step: Optimiser steps that the weights were trained for.

    Returns:
        ``{"metrics": {name: value}, "record": {...}}``: the content of ``metrics.json``.
    """
    begin = time.perf_counter()
    if isinstance(module, GenerativeModule):
        module.sampling_times = []
    trainer.test(module, datamodule=datamodule, verbose=False)
    metrics: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Measurement):
            metrics.update({name: float(value) for name, value in callback.results.items()})
            measured[snake_case(type(callback).__name__)] = callback.record
    record = {
        **measured,
        "weights": weights,
        "step": step,
        "sampling": sampling_record(module) if isinstance(module, GenerativeModule) else {},
        "seed": config.seed,
        "evaluation_seed": module.evaluation_seed,
        "data": datamodule.record(),
        "degradation": plain_config(config).get("degradation"),
        "hardware": hardware(module.device),
        "seconds": round(time.perf_counter() - begin, 1),
        "time": now(),
    }
    return {"metrics": dict(sorted(metrics.items())), "record": record}


def write_result(trainer: Trainer, result: dict[str, Any], folder: Path) -> None:
    """Write what ``run_test`` returned, and last of all its numbers.

    Args:
        trainer: The trainer of the test, whose callbacks hold what each image has added.
        folder: The run's, or that of an evaluation.
    """
    by_image: dict[str, ImageValues] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        by_image |= callback.by_image if isinstance(callback, MeasuringCallback) else {}
    write_by_image(folder, by_image)
    write_json(folder / "metrics.json", result)


def sampling_record(module: GenerativeModule) -> dict[str, Any]:
    """Describe how a module's outputs were made in a test, and what they cost; its calls were timed."""
    calls = {name: n for name, each in module.outputs.items() if (n := each.num_network_calls) is not None}
    times, module.sampling_times = module.sampling_times or [], None
    return {**module.sampling_record(), "num_network_calls": calls, **time_record(times, calls)}


def snake_case(name: str) -> str:
    """Write a class name such as ``LabelAccuracy`` as a key, ``label_accuracy``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


LOG_WIDTH = 120  # columns where the output is no terminal


def print_result(metrics: dict[str, float], folder: object) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    for layout in layouts(metrics):
        table = Table(title=layout.title)
        for number, heading in enumerate(layout.headings):
            table.add_column(escape(heading), justify="right" if number else "left", overflow="fold")
        for row in layout.rows:
            table.add_row(*map(escape, row))
        console.print(table)
    console.print(f"{RUN_FOLDER}{folder}", soft_wrap=True, highlight=False, markup=False, emoji=False)
