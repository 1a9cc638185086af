"""What needs no training, measured on the same degraded test images as a restorer."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor

from callbacks.batch_metrics import BatchMetrics
from callbacks.measuring import first_rows
from datamodules.base import datamodule_of
from files.pixels import from_levels
from generative.baselines import diffused, mean_colour, nearest
from generative.checks import checked
from generative.metrics import RestorationMetrics
from generative.ranges import Count

CHUNK = 2000  # training images at a time
WORDS = {
    "mean_colour": "mean colour of the known pixels",
    "opencv": "OpenCV, Navier-Stokes",
    "nearest_image": "nearest training image",
}


@checked("callbacks.baselines")
class Baselines(BatchMetrics[RestorationMetrics]):
    """Measures in test what stands for no skill: mean colour and OpenCV in holes, and the nearest training image.

    Their metrics are those of outputs of these names; mean colour and OpenCV are measured on the images of which pixels are
    known. Without OpenCV its row is missing, and the record says so.

    Args:
        num_images: Test images with a smaller index are used; None for all.
        num_training: Training images with a smaller index are looked through.
    """

    tasks = frozenset({"restore", "inpaint"})

    def __init__(self, num_images: Count | None = None, num_training: Count = 20_000) -> None:
        super().__init__()
        self.num_images = num_images
        self.num_training = num_training

    def metrics_of(self, module: LightningModule) -> RestorationMetrics:
        self._trainer = module.trainer
        return RestorationMetrics()

    @torch.no_grad()
    def take(self, outputs: dict[str, Any]) -> None:
        whole = outputs["batch"]
        rows = first_rows(whole, self.num_images)
        if not self._trainer.testing or whole.degraded is None or len(rows) == 0:
            return
        batch = whole.select(rows)
        degraded, validity = batch.observed()
        self.metrics.update(
            {"nearest_image": nearest(degraded, validity, self._training_images(degraded.device))}, batch
        )
        known = (validity > 0).flatten(1).any(1).nonzero()[:, 0]  # image by image: no result may depend on the batch
        if len(known):
            degraded, validity = degraded[known], validity[known]
            answers = {"mean_colour": mean_colour(degraded, validity)}
            if _has_opencv():
                answers["opencv"] = diffused(degraded, validity)
            self.metrics.update(answers, batch.select(known))

    def _training_images(self, device: torch.device) -> Iterator[Tensor]:
        data = datamodule_of(self._trainer)
        store = data.splits.train
        for index in torch.arange(min(self.num_training, len(store))).split(CHUNK):
            yield from_levels(store.read(index, data.image_size)[0].to(device))

    def describe(self) -> dict[str, Any]:
        missing = {} if _has_opencv() else {"opencv": "not installed"}
        return super().describe() | {"without_training": WORDS, "num_training": self.num_training, "missing": missing}


def _has_opencv() -> bool:
    return find_spec("cv2") is not None
