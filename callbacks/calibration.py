"""Calibration: draws several samples of the first test images and checks that they scatter as a posterior does."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer

from callbacks.measuring import MeasuringCallback, first_rows
from generative.checks import checked
from generative.metrics import CalibrationMetrics
from generative.ranges import Count


@checked("callbacks.calibration")
class Calibration(MeasuringCallback):
    """Measures mean-of-K PSNR and spread of a stochastic output in test; see ``generative.metrics.calibration``.

    A module without this output, such as a regression, is passed over: there is nothing to calibrate.

    Args:
        num_images: Test images with a smaller index are used.
        num_samples: Samples per image, at least 2.
        output: Name of the output that is a sample.

    Raises:
        ValueError: If there are fewer than 2 samples.

    Attributes:
        results: Metrics of the last test; empty without the output.
        record: Split, number of images and samples, definitions and theory behind ``results``.
    """

    def __init__(self, num_images: Count = 256, num_samples: Count = 16, output: str = "sample") -> None:
        super().__init__()
        self.num_images = num_images
        self.num_samples = num_samples
        self.output = output
        self._metrics = CalibrationMetrics(num_samples, output)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._metrics.reset(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        module: Any = pl_module
        batch, restored = outputs["batch"], outputs["outputs"]
        rows = first_rows(batch, self.num_images)
        if self.output not in restored or len(rows) == 0:
            return
        subset = batch.select(rows)
        with trainer.precision_plugin.forward_context():
            samples = [
                module.images_of(subset, module.evaluation_randomness(subset, f"calibration/{k}"))[self.output]
                for k in range(self.num_samples)
            ]
        self._metrics.update(torch.stack(samples), subset, restored["mean"][rows] if "mean" in restored else None)

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        results = self._metrics.compute()
        record = {
            "split": "test",
            "num_images": self._metrics.num_images,
            "num_samples": self.num_samples,
            "definitions": self._metrics.definition(),
        }
        return results, record if results else {}
