"""The base of all data sets: raw batches of the splits, and their completion on the device."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor

from datamodules.damage import Policy, damage_record
from datamodules.encoded_cache import EncodedCache, Encoder, encoded_by_ranks
from datamodules.loader import EvaluationLoader, Loader, RawBatch
from datamodules.sampler import EvaluationSampler, IndexBatch, StepBatchSampler
from datamodules.source import ImageSource
from datamodules.splits import Split, Splits, digest_of
from datamodules.views import Views
from files.cache import cache_folder
from files.pixels import from_levels
from generative.degradations import Degradation
from generative.randomness import IndexRandomness, Randomness, StepRandomness, generator_for
from generative.ranges import Channels, Count, WholeNumber
from generative.truth import GaussianField
from generative.types import Batch

# A larger training set stays in host memory, or on disk where it is memory-mapped, and is copied batch by batch.
RESIDENT_BYTES = 8 * 2**30


class ImageDataModule(LightningDataModule, ABC):
    """Images for training, validation and test; a data set adds ``load_splits``.

    The loaders yield uint8 batches; ``on_after_batch_transfer`` makes them a ``Batch`` on the device: images in
    [-1, 1], mirrored and turned in training where asked for, and what the degradation leaves of them.

    Attributes:
        prior: The law that the images are drawn from, where it is known.
        start_step: First step of the training stream; set it before ``fit`` to the checkpoint's step on resume.
        damaged_met: Indices of the training images that could not be decoded when they were drawn, and were replaced.

    Args:
        name: Name of the data set, for the record.
        image_size: Side of the images in pixels.
        channels: 1 for grey, 3 for RGB.
        num_classes: Length L of the labels; 0 for a data set without labels.
        label_factors: How a label's number splits into digits, as the radices from the most significant one on, whose
            product is ``num_classes``; by default it does not.
        global_batch_size: Training images per step over all ranks.
        eval_batch_size: Validation and test images per batch and rank; results do not depend on it.
        num_train: At most so many training images, or None for all.
        num_val: At most so many validation images, or None for all.
        num_test: At most so many test images, or None for all.
        horizontal_flip: Whether each training image is mirrored with probability one half.
        quarter_turns: Whether each training image is turned by 0, 90, 180 or 270 degrees, all alike likely.
        mirror_keeps_labels: Whether a mirrored or turned image still has its labels; a digit has not.
        degradation: Makes degraded image and validity map on the device, or None for clean images only.
        resident: Whether a training set of up to ``RESIDENT_BYTES`` lies on the training device.
        seed: The run's seed: order, crops, flips, turns and degradations of the training images.
        evaluation_seed: Seed of the degradations in validation and test; the same for all runs that are compared.
        damaged: ``stop`` or ``skip``: what becomes of image files that cannot be decoded; None for a data set that
            reads no files of its user.
        cache_dir: Cache folder, or None for the user's.

    Raises:
        ValueError: If the label factors do not multiply to ``num_classes``.
    """

    prior: GaussianField | None = None
    name: str  # LightningDataModule's may be None

    def __init__(
        self,
        name: str,
        image_size: Count,
        channels: Channels,
        num_classes: WholeNumber = 0,
        label_factors: Sequence[Count] = (),
        global_batch_size: Count = 128,
        eval_batch_size: Count = 250,
        num_train: Count | None = None,
        num_val: Count | None = None,
        num_test: Count | None = None,
        horizontal_flip: bool = False,
        quarter_turns: bool = False,
        mirror_keeps_labels: bool = True,
        degradation: Degradation | None = None,
        resident: bool = True,
        seed: int = 0,
        evaluation_seed: int = 0,
        damaged: Policy | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.channels: int = channels
        self.num_classes = num_classes
        self.label_factors = tuple(label_factors) or ((num_classes,) if num_classes else ())
        if math.prod(self.label_factors or (0,)) != num_classes:
            raise ValueError(
                f"data.label_factors={list(self.label_factors)} do not multiply to data.num_classes={num_classes}: "
                f"set data.label_factors={[num_classes] if num_classes else []}"
            )
        self.global_batch_size = global_batch_size
        self.eval_batch_size = eval_batch_size
        self.limits = {"train": num_train, "val": num_val, "test": num_test}
        self.horizontal_flip = horizontal_flip
        self.quarter_turns = quarter_turns
        self.views = Views(horizontal_flip, quarter_turns)
        self.mirror_keeps_labels = mirror_keeps_labels
        if degradation is not None:
            degradation.check_images(image_size, channels)
        self.degradation = degradation
        self.resident = resident
        self.seed = seed
        self.evaluation_seed = evaluation_seed
        self.damaged = damaged
        self.cache_dir = cache_folder(cache_dir)
        self.damaged_met: set[int] = set()
        self.start_step = 0
        self._encoded: EncodedCache | None = None

    @abstractmethod
    def load_splits(self) -> Splits:
        """Load the data set.

        Returns:
            Its splits, the same ones in every process.
        """

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the L labels in order, or none for a data set that does not name them."""
        return ()

    @property
    def label_sets(self) -> dict[str, Tensor]:
        """Sets of labels to draw images of, by name: (S, L) float multi-hot vectors. Loads no images."""
        return {}

    def real_images(self, label_sets: str, number: int) -> tuple[Tensor, Tensor] | None:
        """Return up to ``number`` images (N, C, H, W) and labels (N, L) of a group of label sets that training and test have
        no images of; None for all other groups."""
        return None

    def object_masks(self, split: Split, index_B: Tensor) -> Tensor | None:
        """Tell where the objects are that evaluation images are labelled for.

        Args:
            split: ``val`` or ``test``.
            index_B: (B,) int64 indices within the split.

        Returns:
            (B, L, H, W) booleans, true where a pixel shows the label's object; None for data that do not know.
        """
        return None

    @cached_property
    def splits(self) -> Splits:
        """The splits in memory: loaded on first use, without leaks, limited and checked."""
        splits = self.load_splits().without_leaks().limited(**self.limits)
        splits.check(self.name, self.image_size, self.channels, self.num_classes)
        return splits

    def prepare_data(self) -> None:
        """Fill the caches in one process before the others read them."""
        self.splits  # noqa: B018 - loads on first use

    def setup(self, stage: str | None = None) -> None:
        """Load the splits in every process."""
        self.splits  # noqa: B018 - loads on first use

    @property
    def _rank(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_rank

    @property
    def _world_size(self) -> int:
        return 1 if self.trainer is None else self.trainer.world_size

    def _training_store(self) -> ImageSource:
        store = self.splits.train
        if self.trainer is None or not self.resident or store.nbytes > RESIDENT_BYTES:
            return store
        return store.to(self.trainer.strategy.root_device)

    def use_encoder(self, encoder: Encoder, cache_dir: str | None = None) -> EncodedCache:
        """Give training batches from now on what an autoencoder makes of their images, computed once and cached.

        Mirrored and turned images too; larger ones are from now on seen in their centred crop alone, which is what is encoded.

        Args:
            cache_dir: Cache folder, or None for the user's.

        Returns:
            What is encoded of all training images.
        """
        self._encoded = encoded_by_ranks(
            self.trainer, self.splits.train, self.image_size, self.views, encoder, cache_dir
        )
        return self._encoded

    def train_dataloader(self) -> Loader:
        """Return the endless stream of raw training batches of this rank, from ``start_step``."""
        store = self._training_store()
        ranks = self._rank, self._world_size
        sampler = StepBatchSampler(
            len(store), self.global_batch_size, self.seed, self.start_step, *ranks, store.permutation
        )

        def fetch(batch: IndexBatch) -> RawBatch:
            crops = StepRandomness(generator_for(self.seed, "crop", batch.step, self._rank), len(batch.indices))
            return self._fetch("train", store, batch, crops if self._encoded is None else None, training=True)

        return Loader(sampler, fetch, store.prefetch)

    def _evaluation_loader(self, split: Split) -> EvaluationLoader:
        store: ImageSource = getattr(self.splits, split)
        sampler = EvaluationSampler(len(store), self.eval_batch_size, self._rank, self._world_size)
        return EvaluationLoader(sampler, lambda batch: self._fetch(split, store, batch), store.prefetch)

    def val_dataloader(self) -> EvaluationLoader:
        """Return this rank's part of the validation split."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> EvaluationLoader:
        """Return this rank's part of the test split."""
        return self._evaluation_loader("test")

    def _fetch(
        self,
        split: Split,
        store: ImageSource,
        batch: IndexBatch,
        crops: Randomness | None = None,
        training: bool = False,
    ) -> RawBatch:
        image, index = store.read(batch.indices, self.image_size, crops)
        return RawBatch(
            image=image,
            index=index,
            labels=store.labels_of(index),
            split=split,
            step=batch.step,
            training=training,
            damaged=tuple(batch.indices[index != batch.indices].tolist()),
        )

    def batch(self, split: Split, indices: Tensor | Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return some images as evaluation sees them, outside of any loop.

        Args:
            indices: (B,) indices within the split.
            device: Device of the batch.

        Returns:
            The batch, with the centred crops and the draws that the evaluation loaders give these images.
        """
        raw = self._fetch(split, getattr(self.splits, split), IndexBatch(0, torch.as_tensor(indices)))
        return self._complete(raw.to(device))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Complete a raw batch on its device. Anything else passes unchanged."""
        if not isinstance(batch, RawBatch):
            return batch
        self._count_damaged(batch.damaged)
        return self._complete(batch)

    def _count_damaged(self, indices: tuple[int, ...]) -> None:
        """Count drawn images that were replaced when they are used, not when they are fetched ahead: so the count is
        a function of the step."""
        if indices and not self.damaged_met:
            warnings.warn(
                f"the image {self.splits.train.name_of(indices[0])} cannot be decoded and is replaced by the next one, as "
                "all others will be that cannot: data/damaged_images counts them",
                stacklevel=2,
            )
        self.damaged_met.update(indices)

    def damage_record(self) -> dict[str, Any]:
        """Describe what became of image files that cannot be decoded; empty for data that read no files of their user."""
        return {} if self.damaged is None else damage_record(self.damaged, self.splits, self.damaged_met)

    def _complete(self, raw: RawBatch) -> Batch:
        assert raw.image.dtype == torch.uint8  # the border: 0..255 becomes exactly [-1, 1]
        image = from_levels(raw.image)
        batch = Batch(image=image, index=raw.index, step=raw.step, labels=raw.labels)
        if raw.training:
            view = self.views.drawn(lambda purpose: self._randomness(raw, purpose), image)
            batch.image = image = self.views.seen(image, view)
            if self._encoded is not None:
                batch.encoded = self._encoded.lookup(raw.index, view)
        if self.degradation is not None:
            degraded = self.degradation(image, self._randomness(raw, "degradation"), training=raw.training)
            batch.degraded, batch.validity, batch.kind = degraded
        return batch

    def _randomness(self, raw: RawBatch, purpose: str) -> Randomness:
        device = raw.image.device
        if raw.training:
            generator = generator_for(self.seed, purpose, raw.step, self._rank, device)
            return StepRandomness(generator, len(raw.image))
        return IndexRandomness.for_images(self.evaluation_seed, f"{purpose}/{raw.split}", raw.index, device)

    def record(self) -> dict[str, Any]:
        """Describe the data, for the record of a run and next to its metrics.

        Returns:
            Plain values.
        """
        settings: dict[str, Any] = {
            "name": self.name,
            "image_size": self.image_size,
            "channels": self.channels,
            "num_classes": self.num_classes,
            "horizontal_flip": self.horizontal_flip,
            "quarter_turns": self.quarter_turns,
            "evaluation_seed": self.evaluation_seed,
        }
        if self.label_names:
            settings |= {"label_names": list(self.label_names), "label_factors": list(self.label_factors)}
        record = settings | self.splits.record() | self.damage_record()
        if self.label_sets:
            rows = [f"{name} {row.nonzero()[:, 0].tolist()}" for name, sets in self.label_sets.items() for row in sets]
            record["fingerprints"] = {**record["fingerprints"], "label_sets": digest_of([*self.label_names, *rows])}
        return record


def datamodule_of(trainer: Trainer) -> ImageDataModule:
    """Return the data of a fit or test.

    Args:
        trainer: The trainer, which Lightning's types give no data module.
    """
    return trainer.datamodule  # type: ignore[attr-defined]
