"""The one evaluation that ends a training and that ``evaluate.py`` repeats."""

from __future__ import annotations

import math
import re
import time
from typing import Any, Protocol, runtime_checkable

from lightning import Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from datamodules.base import ImageDataModule
from launch.build import plain_config
from launch.record import hardware, now
from launch.sampling_time import sampling_timed
from lightning_modules import GenerativeModule


@runtime_checkable
class Measurement(Protocol):
    """A callback that measures in test.

    Attributes:
        results: Metrics by ``<metric>/<output>``.
        record: What they are and what they were measured on.
    """

    results: dict[str, float]
    record: dict[str, Any]


def run_test(
    trainer: Trainer, module: GenerativeModule, datamodule: ImageDataModule, config: DictConfig, weights: str, step: int
) -> dict[str, Any]:
    """Evaluate on the test images.

    Args:
        trainer: Trainer with the evaluation callbacks.
        module: The module; an EMA callback of the trainer swaps its weights in.
        datamodule: The data.
        config: The config that all was built from.
        weights: ``ema`` or ``raw``: what is being evaluated.
        step: Optimiser steps that the weights were trained for.

    Returns:
        ``{"metrics": {name: value}, "record": {...}}``: the content of ``metrics.json``.
    """
    begin = time.perf_counter()
    with sampling_timed(module) as times:
        trainer.test(module, datamodule=datamodule, verbose=False)
    sampling = module.sampling_record()
    metrics: dict[str, float] = {}
    measured: dict[str, Any] = {}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Measurement):
            metrics.update(callback.results)
            measured[snake_case(type(callback).__name__)] = callback.record
    record = {
        **measured,
        "weights": weights,
        "step": step,
        "sampling": sampling | times.record(sampling.get("num_network_calls", {})),
        "seed": config.seed,
        "evaluation_seed": module.evaluation_seed,
        "data": datamodule.record(),
        "degradation": plain_config(config).get("degradation"),
        "hardware": hardware(module.device),
        "seconds": round(time.perf_counter() - begin, 1),
        "time": now(),
    }
    return {"metrics": dict(sorted(metrics.items())), "record": record}


def snake_case(name: str) -> str:
    """Write a class name as a key.

    Args:
        name: Such as ``LabelAccuracy``.

    Returns:
        Such as ``label_accuracy``.
    """
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


LOG_WIDTH = 120  # columns where the output is no terminal
TABLES = {
    "test": ("psnr", "psnr_channel", "psnr_luma", "psnr_pooled", "psnr_hole", "ssim", "mse"),
    "label accuracy": (
        "label_accuracy",
        "label_accuracy_std",
        "label_accuracy_per_image",
        "label_accuracy_per_image_std",
        "exact_sets",
    ),
    "label accuracy, assisted": (
        "label_accuracy_assisted",
        "label_accuracy_assisted_std",
        "label_accuracy_per_image_assisted",
    ),
    "restored images against the clean ones": ("fid_paired", "kid_paired"),
    "restored images against the clean ones, features of the label classifier": (
        "fd_label_classifier_paired",
        "kd_label_classifier_paired",
    ),
    "images against the reference": ("fid", "kid", "inception_score", "precision", "recall"),
    "images against the reference, features of the label classifier": (
        "fd_label_classifier",
        "kd_label_classifier",
        "precision_label_classifier",
        "recall_label_classifier",
    ),
    "codebook": ("codebook_usage", "codebook_perplexity"),
    "token accuracy by masked share": ("token_accuracy",),
    "calibration": ("calibration_psnr", "calibration_gap", "spread", "spread_hole"),
}


def output_order(output: str) -> tuple[float, int, str]:
    """Return the key by which outputs are sorted: numbers by value, then names, short ones first.

    Args:
        output: Name of an output, or a number such as a masked share.

    Returns:
        A key for ``sorted``.
    """
    try:
        return float(output), 0, output
    except ValueError:
        return math.inf, len(output), output


def metrics_table(title: str, columns: tuple[str, ...], metrics: dict[str, float]) -> Table:
    """Lay metrics out with a row per output and a column per metric.

    Args:
        title: Title of the table.
        columns: Metrics to show, where there are any values.
        metrics: Values by ``<metric>/<output>``.

    Returns:
        A table to print.
    """
    split = {name: tuple(name.split("/", 1)) for name in metrics}
    names = [column for column in columns if any(metric == column for metric, _ in split.values())]
    outputs = dict.fromkeys(output for metric, output in split.values() if metric in names)
    table = Table(title=title)
    for column in ("output", *names):
        table.add_column(column, justify="left" if column == "output" else "right", no_wrap=True)
    for output in sorted(outputs, key=output_order):
        cells = [metrics.get(f"{name}/{output}") for name in names]
        table.add_row(output, *("" if cell is None else f"{cell:.4g}" for cell in cells))
    return table


def print_result(metrics: dict[str, float], folder: object) -> None:
    """Print the metrics and where the run lies.

    Args:
        metrics: Values by ``<metric>/<output>``.
        folder: Run or evaluation folder.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=LOG_WIDTH)
    for title, columns in TABLES.items():
        table = metrics_table(title, columns, metrics)
        if table.row_count:
            console.print(table)
    console.print(f"run folder: {folder}", soft_wrap=True, highlight=False)
