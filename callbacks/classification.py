"""Classification: how many labels of held-out images a classifier recognises, over all ranks."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule

from callbacks.batch_metrics import BatchMetrics
from generative.metrics.catalogue import definitions
from generative.metrics.label_accuracy import METRICS, LabelAccuracyMetrics


class Classification(BatchMetrics[LabelAccuracyMetrics]):
    """Measures the ``scores`` as ``<metric>/heldout``.

    What the test measures is the ceiling of every label accuracy that this classifier will give to generated images.
    """

    def metrics_of(self, module: LightningModule) -> LabelAccuracyMetrics:
        """See ``BatchMetrics.metrics_of``."""
        return LabelAccuracyMetrics("heldout")

    def take(self, outputs: dict[str, Any]) -> None:
        """See ``BatchMetrics.take``."""
        self.metrics.update(outputs["scores"], outputs["batch"].labels)

    def describe(self) -> dict[str, Any]:
        """See ``BatchMetrics.describe``."""
        return {
            "num_images": self.metrics.num_images,
            "num_labels": self.metrics.num_labels,
            "definitions": definitions(METRICS),
        }
