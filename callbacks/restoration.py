"""Evaluation: measures what the validation and test steps restored, over all ranks."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from lightning import LightningModule
from torch import Tensor

from callbacks.batch_metrics import BatchMetrics, Metrics
from generative.metrics import RestorationMetrics
from generative.types import Batch
from lightning_modules.contract import ANSWERING


class OfImages(Metrics, Protocol):
    """Metrics of images by the names of outputs, beside the clean images of the batch."""

    def update(self, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Take in a batch: (B, C, H, W) images in [-1, 1] by name."""


OfImagesT = TypeVar("OfImagesT", bound=OfImages)


class ImageMetrics(BatchMetrics[OfImagesT]):
    """Measures the named ``outputs``, and the degraded images as the output ``degraded``.

    What derives from it also measures whole pictures (``evaluate.py pictures=``).
    """

    tasks = ANSWERING

    def take(self, outputs: dict[str, Any]) -> None:
        batch, restored = outputs["batch"], dict(outputs["outputs"])
        if batch.degraded is not None:
            restored["degraded"] = batch.degraded
        self.metrics.update(restored, batch)


class Evaluation(ImageMetrics[RestorationMetrics]):
    """Measures with ``RestorationMetrics``."""

    def metrics_of(self, module: LightningModule) -> RestorationMetrics:
        return RestorationMetrics()
