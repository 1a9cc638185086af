"""Token accuracy: how many masked tokens a transformer guesses right, by the share that is masked, over all ranks."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule

from callbacks.batch_metrics import BatchMetrics
from generative.metrics.token_accuracy import TokenAccuracyMetrics


class TokenAccuracy(BatchMetrics[TokenAccuracyMetrics]):
    """Measures the ``token_accuracy``, (B,) shares of right guesses by the name of the masked share, such as ``0.5``."""

    def metrics_of(self, module: LightningModule) -> TokenAccuracyMetrics:
        return TokenAccuracyMetrics()

    def take(self, outputs: dict[str, Any]) -> None:
        self.metrics.update(outputs.get("token_accuracy") or {})
