"""The base of callbacks that measure what the validation and test steps return, batch by batch and over all ranks."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import torch
from lightning import LightningModule, Trainer

from callbacks.measuring import MeasuringCallback, log_metrics
from generative.metrics.by_image import ImageValues
from generative.metrics.means import MeanMetrics


class Metrics(Protocol):
    """Collects values over batches and ranks.

    Attributes:
        num_images: Images of all ranks behind the last ``compute``.
    """

    num_images: int

    def reset(self, device: torch.device | str = "cpu") -> None:
        """Forget everything; the ranks talk over ``device``."""

    def compute(self) -> dict[str, float]:
        """Merge over the ranks; every rank must call it and gets the same answer.

        Returns:
            Values by ``<metric>/<output>``; empty where there was nothing to measure.
        """
        ...

    def definition(self) -> dict[str, Any]:
        """Say what each metric means, for the record next to the numbers."""
        ...


MetricsT = TypeVar("MetricsT", bound=Metrics)


class BatchMetrics(MeasuringCallback, Generic[MetricsT]):
    """Measures the outputs of ``validation_step`` and ``test_step``; a kind of measurement adds what it takes from them.

    Validation logs ``val/<metric>/<output>``; test logs ``test/<metric>/<output>`` and keeps the exact values.

    Attributes:
        metrics: Metrics of the running or last epoch.
        results: Metrics of the last test.
        record: Split, numbers and definitions behind ``results``; empty where these are.
    """

    metrics: MetricsT

    @abstractmethod
    def metrics_of(self, module: LightningModule) -> MetricsT:
        """Return the metrics of a new epoch; they are reset before the first batch."""

    @abstractmethod
    def take(self, outputs: dict[str, Any]) -> None:
        """Take in a batch: what the step returned."""

    def describe(self) -> dict[str, Any]:
        """Say what the last metrics are and what they were measured on, in plain values for the record."""
        return {"num_images": self.metrics.num_images, "definitions": self.metrics.definition()}

    def values_by_image(self) -> dict[str, ImageValues]:
        return self.metrics.by_image.merged() if isinstance(self.metrics, MeanMetrics) else {}

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        results = self.metrics.compute()
        return results, {"split": "test", **self.describe()} if results else {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics = self.metrics_of(pl_module)
        self.metrics.reset(pl_module.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.take(outputs)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        log_metrics(pl_module, "val", self.metrics.compute())
