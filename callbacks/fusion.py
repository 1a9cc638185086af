"""The metrics of image fusion, of what validation and test restored, over all ranks."""

from __future__ import annotations

from lightning import LightningModule

from callbacks.restoration import ImageMetrics
from generative.metrics.fusion import FusionMetrics


class Fusion(ImageMetrics[FusionMetrics]):
    """Measures the named ``outputs``, the degraded and the clean images with ``FusionMetrics``."""

    def metrics_of(self, module: LightningModule) -> FusionMetrics:
        return FusionMetrics()
