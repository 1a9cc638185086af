"""The three parts of a data set, and that no image is in training and in an evaluation part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.source import ImageSource

Split = Literal["train", "val", "test"]
NOTHING_LEFT = (
    "nothing would be left to train on; name other images, or none, and some are held out of the training images"
)


@dataclass(frozen=True)
class Splits:
    """The parts of a data set and where they come from.

    Attributes:
        train: Images to learn from.
        val: Images to look at while learning.
        test: Images to report on.
        source: What the images are, for the record.
        drawn: How the parts were drawn, in words, for the record.
        num_removed: Training images left out because an evaluation split holds the same pixels.
        damaged: Names of the image files that were left out because they cannot be decoded.
        folders: Files, folders or addresses that they were read from, by what they hold.
    """

    train: ImageSource
    val: ImageSource
    test: ImageSource
    source: str
    drawn: str
    num_removed: int = 0
    damaged: tuple[str, ...] = ()
    folders: dict[str, str] = field(default_factory=dict)

    def without_leaks(self) -> Splits:
        """Leave out the training images that are, pixel for pixel, in the validation or test split.

        Returns:
            Splits whose training images are in no other split; all stores have hashes.

        Raises:
            ValueError: If no training image is left.
        """
        train, val, test = (store.hashed() for store in (self.train, self.val, self.test))
        leaked = torch.isin(train.content_hashes(), torch.cat([val.content_hashes(), test.content_hashes()]))
        if len(leaked) and leaked.all():
            places = "; ".join(f"{split}: {place}" for split, place in self.folders.items())
            raise ValueError(
                f"the validation and test images are the training images themselves{f' ({places})' if places else ''}: "
                f"{NOTHING_LEFT}"
            )
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

    def check(self, name: str, image_size: int, channels: int, num_classes: int) -> None:
        """Check that each split has images, and such as the settings of the data say.

        Args:
            name: Name of the data, for messages.

        Raises:
            ValueError: One has none, or others.
        """
        for split, store in (("train", self.train), ("val", self.val), ("test", self.test)):
            if len(store) == 0:
                raise ValueError(f"the {split} split of data={name} is empty: check data.root and data.num_{split}")
            if store.channels != channels:
                raise ValueError(f"data.channels={channels}, but the images of data={name} have {store.channels}")
            if store.shortest_side < image_size:
                raise ValueError(
                    f"data.image_size={image_size} is larger than an image of data={name} ({store.shortest_side} pixels): "
                    f"set data.image_size={store.shortest_side} or less"
                )
            if store.num_classes != num_classes:
                raise ValueError(f"data.num_classes={num_classes}, but data={name} has {store.num_classes}")

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each split; see ``ImageSource.fingerprint``."""
        return {split: getattr(self, split).fingerprint() for split in ("train", "val", "test")}

    def record(self) -> dict[str, Any]:
        """Describe the splits and check that they are disjoint.

        Returns:
            Plain values; ``fingerprints`` change with any pixel and any label of their split, ``fingerprint`` is that of all.
        """
        stores = {"train": self.train, "val": self.val, "test": self.test}
        hashes = {split: store.content_hashes() for split, store in stores.items()}
        pairs = (("train", "val"), ("train", "test"), ("val", "test"))
        return {
            "source": self.source,
            "folders": self.folders,
            "drawn": self.drawn,
            "images": {split: len(store) for split, store in stores.items()},
            "identical_images": {f"{a}/{b}": int(torch.isin(hashes[a], hashes[b]).sum()) for a, b in pairs},
            "removed_from_train": self.num_removed,
            "fingerprints": self.fingerprints,
            "fingerprint": digest_of(self.fingerprints.values()),
        }


def check_fractions(fractions: Mapping[Split, float]) -> None:
    """Check the config keys ``data.val_fraction`` and ``data.test_fraction`` that are in use.

    Args:
        fractions: Share of the training images for each split that is held out of them.

    Raises:
        ValueError: If they leave nothing to train on.
    """
    if sum(fractions.values()) >= 1:
        keys = " and ".join(f"data.{split}_fraction={fraction:g}" for split, fraction in fractions.items())
        raise ValueError(f"{keys} leave no training images: together they must be below 1")


def check_own_images(split: Split, key: str, named: Iterable[str | Path], training: Iterable[str | Path]) -> None:
    """Check, before any image is read, that an evaluation split does not hold all training images.

    Args:
        split: The split, for the message.
        key: Config key of its files or folders, for the message.
        named: Those files or folders; a folder holds what lies in it.
        training: Files or folders of the training images.

    Raises:
        ValueError: If each of the second is, or lies in, one of the first, also by symbolic links.
    """
    own = {Path(place).resolve() for place in named}
    places = list(training)
    if all(own & {path, *path.parents} for path in (Path(place).resolve() for place in places)):
        raise ValueError(
            f"the {split} images of {key} are the training images themselves ({places[0]}): {NOTHING_LEFT}"
        )


def digest_of(parts: Iterable[str]) -> str:
    """Hash texts in their order.

    Args:
        parts: The texts, none with a line break.

    Returns:
        16 hexadecimal digits.
    """
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()


def _first(store: ImageSource, limit: int | None) -> ImageSource:
    return store if limit is None else store.select(torch.arange(min(limit, len(store))))
