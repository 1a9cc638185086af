"""The embedded data whose law is known, so that every answer can be compared with the exact one."""

from __future__ import annotations

from typing import Any

import torch

from datamodules.base import ImageDataModule
from datamodules.splits import Split, Splits
from datamodules.store import ImageStore
from files.pixels import to_bytes
from generative.checks import checked
from generative.randomness import generator_for
from generative.ranges import Channels, Count
from generative.truth import GaussianField

SIZES: dict[Split, int] = {"train": 20_000, "val": 1_000, "test": 2_000}
_CHUNK = 100  # images drawn from one generator: part of what they are


@checked("data")
class KnownLawDataModule(ImageDataModule):
    """Images drawn from a known law on first use; there are no labels.

    Args:
        prior: The law.
        image_size: Side of the images in pixels.
        **settings: See ``ImageDataModule``; the limits ``num_train``, ``num_val`` and ``num_test`` spare generation.
    """

    def __init__(
        self, prior: GaussianField, name: str, image_size: Count = 16, channels: Channels = 1, **settings: Any
    ) -> None:
        super().__init__(name, image_size, channels, **settings)
        if self.num_classes:
            raise ValueError(
                f"data.num_classes={self.num_classes}: the images of data={name} have no labels; set data.num_classes=0."
            )
        self.prior: GaussianField = prior

    def load_splits(self) -> Splits:
        return Splits(
            train=self._store("train"),
            val=self._store("val"),
            test=self._store("test"),
            source="drawn from a known law",
            drawn=f"independent draws per split of {self.prior}",
        )

    def _store(self, split: Split) -> ImageStore:
        limit = self.limits[split]
        num_images = SIZES[split] if limit is None else max(0, min(limit, SIZES[split]))
        images = torch.empty(num_images, self.channels, self.image_size, self.image_size, dtype=torch.uint8)
        for chunk, rows in enumerate(images.split(_CHUNK)):
            generator = generator_for(0, f"{self.prior}/{split}", step=chunk)
            rows.copy_(to_bytes(self.prior.draw(generator, _CHUNK)[: len(rows)]))
        return ImageStore.dense(images, recipe=f"{self.prior} {split}")
