"""Classification: how many labels of held-out images a classifier recognises, over all ranks."""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from generative.metrics.label_accuracy import DEFINITIONS, LabelAccuracyMetrics


class Classification(Callback):
    """Measures the ``scores`` that ``validation_step`` and ``test_step`` return.

    Validation logs ``val/<metric>/heldout``; test logs ``test/<metric>/heldout`` and keeps the exact values. What the
    test measures is the ceiling of every label accuracy that this classifier will give to generated images.

    Attributes:
        results: Metrics of the last test, ``<metric>/heldout``.
        record: Split, number of images and labels, and definitions behind ``results``.
    """

    def __init__(self) -> None:
        self.results: dict[str, float] = {}
        self.record: dict[str, Any] = {}
        self._metrics = LabelAccuracyMetrics("heldout")

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
        self._metrics.update(outputs["scores"], outputs["batch"].labels)

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
            "num_labels": self._metrics.num_labels,
            "definitions": DEFINITIONS,
        }
        pl_module.log_dict({f"test/{name}": value for name, value in self.results.items()}, sync_dist=True)
