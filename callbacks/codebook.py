"""Codebook: how many of its codes a tokenizer uses, and how evenly, over all ranks."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule

from callbacks.batch_metrics import BatchMetrics
from generative.metrics.codebook import CodebookMetrics


class Codebook(BatchMetrics[CodebookMetrics]):
    """Measures the ``tokens``, (B, N) int64, with ``CodebookMetrics``.

    A network without codes, such as an autoencoder with continuous latents, is passed over: there is nothing to measure.
    """

    tasks = frozenset({"reconstruct"})

    def metrics_of(self, module: LightningModule) -> CodebookMetrics:
        network: Any = module.network
        return CodebookMetrics(getattr(network, "num_codes", None) or 0)

    def take(self, outputs: dict[str, Any]) -> None:
        tokens_BN = outputs.get("tokens")
        if tokens_BN is not None and self.metrics.num_codes:
            self.metrics.update(tokens_BN)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"num_codes": self.metrics.num_codes}
