"""Tar shards in WebDataset's layout, local or by URL, for sets beyond memory; every image by its index."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.base import ImageDataModule
from datamodules.damage import Policy, left_out
from datamodules.shards.files import ShardFiles, is_url
from datamodules.shards.index import SampleKeys, ShardIndex, index_shards
from datamodules.shards.store import ShardStore
from datamodules.splits import Split, Splits, check_fractions, check_own_images
from files.images import SUFFIXES
from files.packages import needed
from files.words import count, named
from generative.checks import checked
from generative.ranges import BelowOne, Channels, Count, Positive, WholeNumber

_SPARE_FILES = 16  # open ones beyond those that are mixed
_ENDINGS = tuple(suffix[1:] for suffix in SUFFIXES)


@checked("data")
class WebDatasetDataModule(ImageDataModule):
    """Images of tar shards: random crops in training, centred crops in evaluation.

    An index, made once, says where each image lies. So the stream is that of the other data sets, a function of seed,
    step and rank, and a resume is exact; only the order of an epoch is drawn in two stages, to read few shards at a time.

    Validation and test images are decoded once before the start. Training images are met when they are drawn.

    Args:
        image_size: Side of the crops; smaller images are enlarged until they fit.
        num_classes: Number of classes, or 0 for no labels.
        train: Training shards: a path or URL, a folder, a pattern with braces or ``*``, or a list of them.
        val: Validation shards; without them, images are held out of training by the hash of their files.
        test: Test shards, likewise.
        val_fraction: Share of the training images for validation where it has no shards.
        test_fraction: Share of the training images for test where it has no shards.
        image_key: Endings of the image members, the first one that a sample has.
        label_key: Ending of the label members, or None: a number, a list of numbers or a JSON object.
        label_field: Name of the labels in that object.
        short_side: Resize every image to this short side before cropping, or None to keep sizes.
        mixed_shards: Shards whose images are mixed with each other in an epoch.
        num_threads: Images that are decoded at the same time.
        prefetch: Batches that are fetched ahead.
        cache_gigabytes: Size of the folder of downloaded shards, or None for any.
        damaged: What becomes of images that cannot be decoded: ``stop`` or ``skip``.
        **settings: See ``ImageDataModule``.

    Raises:
        ValueError: If the webdataset library is missing or a setting is out of its range.
    """

    def __init__(
        self,
        name: str,
        image_size: Count,
        channels: Channels,
        num_classes: WholeNumber = 0,
        train: str | Sequence[str] | None = None,
        val: str | Sequence[str] | None = None,
        test: str | Sequence[str] | None = None,
        val_fraction: BelowOne = 0.01,
        test_fraction: BelowOne = 0.01,
        image_key: str | Sequence[str] = _ENDINGS,
        label_key: str | None = None,
        label_field: str | None = None,
        short_side: Count | None = None,
        mixed_shards: Count = 16,
        num_threads: Count = 8,
        prefetch: Count = 2,
        cache_gigabytes: Positive | None = None,
        damaged: Policy = "stop",
        **settings: Any,
    ) -> None:
        super().__init__(name, image_size, channels, num_classes, damaged=damaged, **settings)
        with needed("webdataset", extra="webdataset", by="data=webdataset"):
            import webdataset  # noqa: F401
        if bool(num_classes) != bool(label_key):
            raise ValueError(
                f"data.num_classes={num_classes} and data.label_key={label_key} do not go together: set both for images "
                "with labels, or neither"
            )
        self.patterns: dict[Split, str | Sequence[str] | None] = {"train": train, "val": val, "test": test}
        self.fractions: dict[Split, float] = {"val": val_fraction, "test": test_fraction}
        endings = image_key.replace(";", " ").split() if isinstance(image_key, str) else image_key
        self.keys = SampleKeys(
            tuple(ending.lower().lstrip(".") for ending in endings), label_key, label_field, num_classes
        )
        self.short_side = short_side
        self.mixed_shards = mixed_shards
        self.prefetch = prefetch
        self.max_bytes = None if cache_gigabytes is None else round(cache_gigabytes * 1e9)
        self.cache_dir /= "webdataset"
        self.pool = ThreadPoolExecutor(num_threads, "decode")

    def load_splits(self) -> Splits:
        shards = {split: expanded(pattern, f"data.{split}") for split, pattern in self.patterns.items() if pattern}
        if "train" not in shards:
            raise FileNotFoundError(
                "data=webdataset needs shards: set data.train to a folder of tar files, or to a path or URL such as "
                "'data.train=\"FOLDER/train-{000000..000099}.tar\"'"
            )
        for split in set(shards) - {"train"}:
            check_own_images(split, f"data.{split}", shards[split], shards["train"])
        locations = list(dict.fromkeys(location for split in shards.values() for location in split))
        files = ShardFiles(locations, self.cache_dir / "shards", self.max_bytes, self.mixed_shards + _SPARE_FILES)
        index = index_shards(files, self.keys, self.cache_dir / "index")
        self._check_cache(locations, index)
        rows = self._rows(shards, locations, index)
        stores = {split: self._store(files, index.select(rows[split])) for split in rows}
        val, val_damaged = self._whole(stores["val"], self.limits["val"])
        test, test_damaged = self._whole(stores["test"], self.limits["test"])
        return Splits(
            train=stores["train"],
            val=val,
            test=test,
            source="tar shards",
            folders={
                split: pattern if isinstance(pattern, str) else ", ".join(pattern)
                for split, pattern in self.patterns.items()
                if pattern
            },
            drawn=", ".join(
                f"{split}: own shards"
                if split in shards
                else f"{split}: {fraction:g} of the training images by file hash"
                for split, fraction in self.fractions.items()
            ),
            damaged=(*val_damaged, *test_damaged),
        )

    def _rows(
        self, shards: dict[Split, list[str]], locations: list[str], index: ShardIndex
    ) -> dict[Split, torch.Tensor]:
        """Return which images of the index belong to each split."""
        rows: dict[Split, torch.Tensor] = {}
        for split, own in shards.items():
            numbers = torch.tensor([locations.index(location) for location in own])
            rows[split] = torch.isin(index.shard, numbers).nonzero()[:, 0]
        missing = [split for split in self.fractions if split not in rows]
        check_fractions({split: self.fractions[split] for split in missing})
        order = rows["train"][index.hash[rows["train"]].argsort()]
        if len(order) <= len(missing):
            raise ValueError(
                f"data.train has {count(len(order), 'image')}, too few for the splits train, {', '.join(missing)}"
            )
        for split in missing:
            number = max(1, math.floor(self.fractions[split] * len(rows["train"])))
            rows[split], order = order[:number].sort().values, order[number:]
        rows["train"] = order.sort().values
        return rows

    def _store(self, files: ShardFiles, index: ShardIndex) -> ShardStore:
        return ShardStore(
            files=files,
            index=index,
            pool=self.pool,
            channels=self.channels,
            classes=self.num_classes,
            minimum_side=self.image_size,
            short_side=self.short_side,
            damaged=str(self.damaged),
            mixed_shards=self.mixed_shards,
            prefetch=self.prefetch,
        )

    def _whole(self, store: ShardStore, limit: int | None) -> tuple[ShardStore, tuple[str, ...]]:
        """Return an evaluation split without its damaged images, which are never replaced there, and their names."""
        readable = store.readable(limit, self.cache_dir / "readable")
        names = [store.name_of(index) for index in (~readable).nonzero()[:, 0].tolist()]
        damaged = left_out(names, len(readable), self.damaged)
        return replace(store.select(readable.nonzero()[:, 0]), damaged="stop"), damaged

    def _check_cache(self, locations: list[str], index: ShardIndex) -> None:
        sizes = (
            index.shard_bytes[torch.tensor([is_url(location) for location in locations])].sort(descending=True).values
        )
        if self.max_bytes is None or sizes.sum() <= self.max_bytes:
            return
        needed = int(sizes[: self.mixed_shards].sum())
        if needed > self.max_bytes:
            raise ValueError(
                f"data.cache_gigabytes={self.max_bytes / 1e9:g} does not hold the {self.mixed_shards} shards of "
                f"data.mixed_shards, {needed / 1e9:.3g} GB: raise the first or lower the second"
            )
        rank_zero_warn(
            f"the shards take {int(sizes.sum()) / 1e9:.3g} GB, more than data.cache_gigabytes={self.max_bytes / 1e9:g}: they "
            "are downloaded again in each epoch"
        )

    def record(self) -> dict[str, Any]:
        return super().record() | {
            "order": f"shards permuted, images permuted within {self.mixed_shards} shards at a time; a function of seed and "
            "epoch",
            "exact_resume": True,
            "short_side": self.short_side,
        }


def expanded(patterns: str | Sequence[str], key: str) -> list[str]:
    """List the shards that a setting names.

    Args:
        patterns: Paths, URLs, folders of tar files, or patterns with braces (as WebDataset writes them) or ``*``.
        key: Config key, for messages.

    Returns:
        Paths and URLs in a fixed order.

    Raises:
        FileNotFoundError: If a file is missing or a folder or pattern has none.
    """
    from webdataset.shardlists import expand_urls

    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        for location in [pattern] if pattern.startswith("pipe:") else expand_urls(pattern):
            shards += [location] if is_url(location) else _local(location, key)
    missing = [shard for shard in shards if not is_url(shard) and not Path(shard).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(shards)} shards of {key} do not exist ({named(missing)}): correct {key}"
        )
    return shards


def _local(location: str, key: str) -> list[str]:
    """Expand a path, a folder or a ``*`` pattern."""
    path = Path(location.removeprefix("file://")).expanduser()
    if path.is_dir():
        path = path / "*.tar"
    if not set("*?[") & set(path.name) or path.exists():
        return [str(path)]
    if not (found := sorted(str(file) for file in path.parent.glob(path.name))):
        raise FileNotFoundError(f"{path} matches no shard: set {key} to a folder of tar files or to a pattern")
    return found
