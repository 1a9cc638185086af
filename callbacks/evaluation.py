"""Evaluation: measures what the validation and test steps restored, over all ranks."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from generative.metrics import RestorationMetrics


class Evaluation(Callback):
    """Measures the outputs of ``validation_step`` and ``test_step`` with ``RestorationMetrics``.

    Validation logs ``val/<metric>/<output>``; test logs ``test/<metric>/<output>`` and keeps the exact values. The
    degraded images are measured too, as the output ``degraded``. The sums live here and not in the module, so that a
    new metric does not break old checkpoints.

    Attributes:
        results: Metrics of the last test, ``<metric>/<output>``.
        record: Split, number of images and definitions behind ``results``.
    """

    def __init__(self) -> None:
        self.results: dict[str, float] = {}
        self.record: dict[str, Any] = {}
        self._metrics = RestorationMetrics()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with empty sums."""
        self._metrics.reset(pl_module.device)

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
        """Take in a batch."""
        restored = dict(outputs["outputs"])
        if outputs["batch"].degraded is not None:
            restored["degraded"] = outputs["batch"].degraded
        self._metrics.update(restored, outputs["batch"])

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the metrics of the validation images."""
        metrics = self._metrics.compute()
        if not trainer.sanity_checking:
            # The values are equal on all ranks already; sync_dist only keeps Lightning from warning.
            pl_module.log_dict({f"val/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep and log the metrics of the test images."""
        self.results = self._metrics.compute()
        self.record = {
            "split": "test",
            "num_images": self._metrics.num_images,
            "definitions": self._metrics.definition(),
        }
        pl_module.log_dict({f"test/{name}": value for name, value in self.results.items()}, sync_dist=True)
