"""RestorationDistances: paired and unpaired FID and KID of what is restored in test."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer

from callbacks.distances import DistanceCallback
from callbacks.measuring import first_rows
from datamodules.splits import Split
from generative.checks import checked
from generative.metrics.inception import InceptionExtractor
from generative.metrics.restoration_distances import RestorationDistanceMetrics
from generative.ranges import Count
from lightning_modules.contract import ANSWERING

KEY = "callbacks.restoration_distances"
BATCH_SIZE = 250  # reference images at a time on each rank; results do not depend on it


@checked("callbacks.restoration_distances")
class RestorationDistances(DistanceCallback):
    """Measures the outputs of ``test_step`` as sets; see ``generative.metrics.restoration_distances``.

    Each output is compared with the clean images of the same test images (paired) and with a reference split (unpaired).
    Features are ordered by the images' indices, so the results depend neither on the batch size nor on the number of
    ranks.

    Args:
        num_images: Test images with a smaller index are used; None for all.
        reference_split: Split of the unpaired comparison.
        num_reference: Images of that split to compare with, or None for all, at most 50,000.
        inception: ``weights`` and ``required`` as in ``InceptionSettings``, or None to do without Inception.
        label_classifier: File of a trained label classifier, a second extractor; or None.
        cache_dir: Cache folder for weights and reference features, or None for the user's.

    Attributes:
        results: Metrics of the last test, ``<metric>_paired/<output>`` and ``<metric>/<output>``; empty without an
            extractor.
    """

    tasks = ANSWERING

    def __init__(
        self,
        num_images: Count | None = None,
        reference_split: Split = "train",
        num_reference: Count | None = None,
        inception: Mapping[str, Any] | None = None,
        label_classifier: str | Path | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__(
            KEY,
            "measures no distances",
            reference_split,
            num_reference,
            BATCH_SIZE,
            inception,
            label_classifier,
            cache_dir,
        )
        self.num_images = num_images
        self._distances: dict[str, RestorationDistanceMetrics] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self.set_up_extractors(trainer, partial(InceptionExtractor, key=f"{KEY}.inception.weights"))

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._distances = {
            name: RestorationDistanceMetrics(e.to(pl_module.device)) for name, e in self.extractors.items()
        }
        for each in self._distances.values():
            each.reset(pl_module.device)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        batch, restored = outputs["batch"], outputs["outputs"]
        rows = first_rows(batch, self.num_images)
        if len(rows) == 0:
            return
        images = {name: image[rows] for name, image in restored.items()}
        for each in self._distances.values():
            each.update(images, batch.image[rows], batch.index[rows])

    def measure(self, trainer: Trainer, module: LightningModule) -> tuple[dict[str, float], dict[str, Any]]:
        """Compare the sets."""
        results: dict[str, float] = {}
        record: dict[str, Any] = {"split": "test", "num_images": 0, "missing": dict(self.missing)}
        for name, each in self._distances.items():
            results |= each.compute(self.reference(trainer, module, each.extractor))
            record |= {"num_images": each.num_images, name: each.definition()}
            each.extractor.to("cpu")  # leaves the device's memory to others
        self._distances = {}
        return results, record
