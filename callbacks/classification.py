"""Classification: how many labels of held-out images a classifier recognises, over all ranks."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule

from callbacks.batch_metrics import BatchMetrics
from generative.metrics.label_accuracy import LabelAccuracyMetrics


class Classification(BatchMetrics[LabelAccuracyMetrics]):
    """Measures the ``scores`` as ``<metric>/heldout``.

    What the test measures is the ceiling of every label accuracy that this classifier will give to generated images.
    """

    tasks = frozenset({"judge"})

    def metrics_of(self, module: LightningModule) -> LabelAccuracyMetrics:
        return LabelAccuracyMetrics("heldout")

    def take(self, outputs: dict[str, Any]) -> None:
        self.metrics.update(outputs["scores"], outputs["batch"].labels)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"num_labels": self.metrics.num_labels}
