"""A metric as a user writes it beside the project: a plain callback that no list of ours knows."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer


class MeanError(Callback):
    """Has results and a record, and derives from nothing of ours."""

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.errors: list[float] = []

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.errors += (outputs["outputs"]["mean"] - batch.image).abs().flatten(1).mean(1).tolist()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.results = {"mean_error/mean": sum(self.errors) / len(self.errors)}
        self.record = {"num_images": len(self.errors)}
