"""Evaluation: measures what the validation and test steps restored, over all ranks."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule

from callbacks.batch_metrics import BatchMetrics
from generative.metrics import RestorationMetrics


class Evaluation(BatchMetrics[RestorationMetrics]):
    """Measures the named ``outputs`` with ``RestorationMetrics``, and the degraded images as the output ``degraded``."""

    def metrics_of(self, module: LightningModule) -> RestorationMetrics:
        return RestorationMetrics()

    def take(self, outputs: dict[str, Any]) -> None:
        batch, restored = outputs["batch"], dict(outputs["outputs"])
        if batch.degraded is not None:
            restored["degraded"] = batch.degraded
        self.metrics.update(restored, batch)
