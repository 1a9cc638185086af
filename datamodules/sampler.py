"""Which images form a batch: an endless training stream that is a pure function of (seed, step, rank), and evaluation
shards without padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.randomness import generator_for


@dataclass(frozen=True)
class IndexBatch:
    """The images of one rank's batch.

    Attributes:
        step: Index of the batch in the stream.
        indices: (B,) int64 indices within the split.
    """

    step: int
    indices: Tensor


class StepBatchSampler:
    """Endless training batches, indexed by step.

    The stream is the concatenation of one permutation of the images per epoch; the global batch of step s is the
    positions [s G, (s + 1) G) of the stream, and each rank takes a contiguous slice of it. So a run resumed at step s
    sees what the uninterrupted run sees, and the union over the ranks is the batch of a single rank.

    Args:
        num_items: Number of images in the split.
        global_batch_size: Images per step over all ranks (G); may exceed ``num_items``.
        seed: The run's seed.
        start_step: First step of the iteration.
        rank: Rank of this process.
        world_size: Number of ranks.
        permutation: Draws the order of an epoch from a generator; by default all orders are equally likely.

    Raises:
        ValueError: If there are no images or the ranks do not divide the global batch size.
    """

    def __init__(
        self,
        num_items: int,
        global_batch_size: int,
        seed: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        permutation: Callable[[torch.Generator], Tensor] | None = None,
    ) -> None:
        if num_items < 1:
            raise ValueError("the training split has no images: check data.root and data.num_train")
        if global_batch_size < 1 or global_batch_size % world_size != 0:
            remedy = max(1, global_batch_size // world_size) * world_size
            raise ValueError(
                f"data.global_batch_size={global_batch_size} is not a positive multiple of the {world_size} ranks: "
                f"set data.global_batch_size={remedy} or change the number of ranks"
            )
        self.num_items = num_items
        self.global_batch_size = global_batch_size
        self.seed = seed
        self.start_step = start_step
        self.rank = rank
        self.batch_size = global_batch_size // world_size
        self._draw = permutation or (lambda generator: torch.randperm(num_items, generator=generator))
        self._permutations: dict[int, Tensor] = {}

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._permutations:
            self._permutations[epoch] = self._draw(generator_for(self.seed, "shuffle", step=epoch))
        return self._permutations[epoch]

    def batch_at(self, step: int) -> IndexBatch:
        """Return the batch of a step, whatever was asked before.

        Args:
            step: Step of the training stream.

        Returns:
            This rank's (G / world_size,) indices.
        """
        start = step * self.global_batch_size + self.rank * self.batch_size
        stop = start + self.batch_size
        first, last = start // self.num_items, (stop - 1) // self.num_items
        parts = [
            self._permutation(epoch)[max(0, start - epoch * self.num_items) : stop - epoch * self.num_items]
            for epoch in range(first, last + 1)
        ]
        # One permutation is kept, for the next step; the earlier ones are not needed again.
        self._permutations = {last: self._permutations[last]}
        return IndexBatch(step, torch.cat(parts))

    def __iter__(self) -> Iterator[IndexBatch]:
        step = self.start_step
        while True:
            yield self.batch_at(step)
            step += 1


class EvaluationSampler:
    """Every image exactly once over all ranks: rank r takes the images r, r + W, r + 2 W, ...

    Nothing is padded or repeated: five images over two ranks are three and two. All ranks take the same number of
    batches, so that collective operations inside a step meet; for that a batch may hold fewer images than
    ``batch_size``, or, for a batch size of one, two.

    Args:
        num_items: Number of images in the split.
        batch_size: Images per batch and rank.
        rank: Rank of this process.
        world_size: Number of ranks.

    Raises:
        ValueError: If there are fewer images than ranks or the batch size is not positive.
    """

    def __init__(self, num_items: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        if num_items < world_size:
            raise ValueError(
                f"an evaluation split has {num_items} images for {world_size} ranks: "
                "raise data.num_val and data.num_test or evaluate on fewer ranks"
            )
        if batch_size < 1:
            raise ValueError(f"data.eval_batch_size={batch_size} must be at least 1")
        self.indices = torch.arange(rank, num_items, world_size)
        largest_shard = -(-num_items // world_size)
        self.num_batches = min(-(-largest_shard // batch_size), num_items // world_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[IndexBatch]:
        for step, indices in enumerate(self.indices.tensor_split(self.num_batches)):
            yield IndexBatch(step, indices)
