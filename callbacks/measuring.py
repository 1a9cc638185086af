"""What measuring callbacks have in common, whatever they measure."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from generative.metrics.by_image import ImageValues
from generative.types import Batch
from lightning_modules.contract import TASKS, Task


class SetupError(ValueError):
    """What a callback needs is missing or does not fit; the message says in one sentence what, and the remedy."""


@runtime_checkable
class Measurement(Protocol):
    """A callback that measures in test, whatever its class: what it holds afterwards goes into ``metrics.json``.

    Attributes:
        results: Metrics by ``<metric>/<output>``.
        record: What they are and what they were measured on, as plain values.
    """

    results: dict[str, float]
    record: dict[str, Any]


class MeasuringCallback(Callback, ABC):
    """Measures in test, keeps the exact values and logs them as ``test/<metric>/<output>``.

    Sums live in callbacks and not in the module, so that a new metric does not break old checkpoints.

    Attributes:
        tasks: What modules do that it can measure.
        results: Metrics of the last test.
        record: What they are and what they were measured on; see ``measure``.
        by_image: What each image has added to those of them that are means over the images.
    """

    tasks: ClassVar[frozenset[Task]] = frozenset(TASKS)

    def __init__(self) -> None:
        self.by_image: dict[str, ImageValues] = {}
        self.results: dict[str, float] = {}
        self.record: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check that the module does what is measured; what else a kind of measurement needs, it looks for here.

        Raises:
            SetupError: It does something else, so that nothing could be measured after the last step.
        """
        done: frozenset[Task] = getattr(pl_module, "current_tasks", self.tasks)
        if not done & self.tasks:
            key = "callbacks." + re.sub(r"(?<!^)(?=[A-Z])", "_", type(self).__name__).lower()
            does, wanted = (" or ".join(task for task in TASKS if task in tasks) for tasks in (done, self.tasks))
            raise SetupError(
                f"{key} measures what modules {wanted}, and {type(pl_module).__name__} is set to {does}: choose "
                f"callbacks= of its task, or set {key}=null."
            )

    @abstractmethod
    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        """End the measurement of a test; every rank must call it and gets the same answer.

        Returns:
            Values by ``<metric>/<output>``, and plain values that say what they are and what they were measured on.
        """

    def values_by_image(self) -> dict[str, ImageValues]:
        """Return what is kept image by image of a test; every rank must call it and gets the same answer."""
        return {}

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.results, self.record = self.measure(trainer, pl_module)
        self.by_image = self.values_by_image()
        log_metrics(pl_module, "test", self.results)


def log_metrics(module: LightningModule, split: str, metrics: dict[str, float]) -> None:
    """Log metrics that are equal on all ranks as ``<split>/<metric>/<output>``."""
    # sync_dist only keeps Lightning from warning.
    module.log_dict({f"{split}/{name}": value for name, value in metrics.items()}, sync_dist=True)


def first_rows(batch: Batch, num_images: int | None) -> Tensor:
    """Find the (R,) rows of a batch whose image has an index below ``num_images``; all where that is None."""
    index = batch.index
    return torch.arange(len(index), device=index.device) if num_images is None else (index < num_images).nonzero()[:, 0]
