"""The three parts of a data set, and that no image is in training and in an evaluation part."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from datamodules.source import ImageSource

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Splits:
    """The parts of a data set and where they come from.

    Attributes:
        train: Images to learn from.
        val: Images to look at while learning.
        test: Images to report on.
        source: Where the images come from, for the record.
        drawn: How the parts were drawn, in words, for the record.
        num_removed: Training images left out because an evaluation split holds the same pixels.
        damaged: Names of the image files that were left out because they cannot be decoded.
    """

    train: ImageSource
    val: ImageSource
    test: ImageSource
    source: str
    drawn: str
    num_removed: int = 0
    damaged: tuple[str, ...] = ()

    def without_leaks(self) -> Splits:
        """Leave out the training images that are, pixel for pixel, in the validation or test split.

        Returns:
            Splits whose training images are in no other split; all stores have hashes.
        """
        train, val, test = (store.hashed() for store in (self.train, self.val, self.test))
        leaked = torch.isin(train.content_hashes(), torch.cat([val.content_hashes(), test.content_hashes()]))
        return replace(self, train=train.select(~leaked), val=val, test=test, num_removed=int(leaked.sum()))

    def limited(self, train: int | None, val: int | None, test: int | None) -> Splits:
        """Keep the first images of each split.

        Args:
            train: At most so many training images, or None for all.
            val: At most so many validation images, or None for all.
            test: At most so many test images, or None for all.

        Returns:
            The smaller splits.
        """
        return replace(self, train=_first(self.train, train), val=_first(self.val, val), test=_first(self.test, test))

    def record(self) -> dict[str, Any]:
        """Describe the splits and check that they are disjoint.

        Returns:
            Plain values; ``fingerprint`` changes with any pixel of any split.
        """
        stores = {"train": self.train, "val": self.val, "test": self.test}
        hashes = {split: store.content_hashes() for split, store in stores.items()}
        digest = hashlib.blake2b(digest_size=8)
        for hash_N in hashes.values():
            digest.update(hash_N.numpy().data)
        pairs = (("train", "val"), ("train", "test"), ("val", "test"))
        return {
            "source": self.source,
            "drawn": self.drawn,
            "images": {split: len(store) for split, store in stores.items()},
            "identical_images": {f"{a}/{b}": int(torch.isin(hashes[a], hashes[b]).sum()) for a, b in pairs},
            "removed_from_train": self.num_removed,
            "fingerprint": digest.hexdigest(),
        }


def _first(store: ImageSource, limit: int | None) -> ImageSource:
    return store if limit is None else store.select(torch.arange(min(limit, len(store))))
