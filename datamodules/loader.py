"""Batches of images as they lie in memory, and the loaders that Lightning iterates over."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.sampler import EvaluationSampler, IndexBatch, StepBatchSampler
from datamodules.splits import Split


@dataclass
class RawBatch:
    """Images on their way to the device.

    Attributes:
        image: (B, C, S, S) uint8 images.
        index: (B,) int64 indices within the split.
        labels: (B, L) float multi-hot labels, or None.
        split: The split the images are from.
        step: Index of the batch in the training stream.
        training: Whether training draws (by step) or evaluation draws (by index) complete it.
    """

    image: Tensor
    index: Tensor
    labels: Tensor | None
    split: Split
    step: int
    training: bool

    def to(self, device: torch.device | str) -> RawBatch:
        """Move the tensors to a device; Lightning calls it.

        Args:
            device: The device.

        Returns:
            The batch on the device.
        """
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, image=self.image.to(device), index=self.index.to(device), labels=labels)


class TrainingLoader:
    """The endless training stream.

    Neither this nor ``EvaluationLoader`` is a ``DataLoader``: a batch is one index operation in memory, which worker
    processes would slow down, and Lightning takes any iterable and leaves the sharding of this one alone. (No attribute
    may be named ``sampler``: Lightning would take the object for a ``DataLoader``.)

    Args:
        index_batches: Yields the index batches.
        fetch: Makes the raw batch of an index batch.
    """

    def __init__(self, index_batches: StepBatchSampler, fetch: Callable[[IndexBatch], RawBatch]) -> None:
        self.index_batches = index_batches
        self.fetch = fetch

    def __iter__(self) -> Iterator[RawBatch]:
        return map(self.fetch, self.index_batches)


class EvaluationLoader:
    """One rank's part of an evaluation split.

    Args:
        index_batches: Yields the index batches.
        fetch: Makes the raw batch of an index batch.
    """

    def __init__(self, index_batches: EvaluationSampler, fetch: Callable[[IndexBatch], RawBatch]) -> None:
        self.index_batches = index_batches
        self.fetch = fetch

    def __len__(self) -> int:
        return len(self.index_batches)

    def __iter__(self) -> Iterator[RawBatch]:
        return map(self.fetch, self.index_batches)
