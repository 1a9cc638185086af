"""Batches of images as they lie in memory, and the loaders that Lightning iterates over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from datamodules.sampler import EvaluationSampler, IndexBatch
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
        damaged: Indices of drawn images that cannot be decoded; ``image``, ``index`` and ``labels`` are those of others.
    """

    image: Tensor
    index: Tensor
    labels: Tensor | None
    split: Split
    step: int
    training: bool
    damaged: tuple[int, ...] = ()

    def to(self, device: torch.device | str) -> RawBatch:
        """Move the tensors to a device; Lightning calls it."""
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, image=self.image.to(device), index=self.index.to(device), labels=labels)


def fetched(
    index_batches: Iterable[IndexBatch], fetch: Callable[[IndexBatch], RawBatch], prefetch: int
) -> Iterator[RawBatch]:
    """Fetch batches in their order, some of them ahead in threads.

    Args:
        prefetch: Batches to fetch ahead; 0 fetches each one when it is asked for.

    Yields:
        Raw batches. What ``fetch`` raises is raised in the place of its batch.
    """
    if prefetch == 0:
        yield from map(fetch, index_batches)
        return
    pool = ThreadPoolExecutor(prefetch, "fetch")
    ahead: deque[Future[RawBatch]] = deque()
    try:
        for batch in index_batches:
            ahead.append(pool.submit(fetch, batch))
            if len(ahead) > prefetch:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Loader:
    """Raw batches of index batches: the endless training stream, or one rank's part of an evaluation split.

    It is no ``DataLoader``: a batch is one index operation in memory, which worker processes would slow down, or it is decoded
    in threads, without the global interpreter lock; and Lightning takes any iterable and leaves the sharding of this one alone.
    (No attribute may be named ``sampler``: Lightning would take the object for a ``DataLoader``.)

    Args:
        prefetch: Batches to fetch ahead.
    """

    def __init__(
        self, index_batches: Iterable[IndexBatch], fetch: Callable[[IndexBatch], RawBatch], prefetch: int = 0
    ) -> None:
        self.index_batches = index_batches
        self.fetch = fetch
        self.prefetch = prefetch

    def __iter__(self) -> Iterator[RawBatch]:
        return fetched(self.index_batches, self.fetch, self.prefetch)


class EvaluationLoader(Loader):
    """A loader that ends, and knows after how many batches."""

    index_batches: EvaluationSampler

    def __len__(self) -> int:
        return len(self.index_batches)
