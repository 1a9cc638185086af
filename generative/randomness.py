"""The only source of randomness: every draw is a function of (seed, purpose, step, rank) or of (seed, purpose, index).

Training draws one vectorised stream per step and rank (``StepRandomness``). Validation and test draw from one stream per
image (``IndexRandomness``), so that they do not depend on batch size, worker count, number of ranks or device.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _seed_for(seed: int, purpose: str, step: int, rank: int) -> int:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # 63 bits: torch seeds are signed


def generator_for(
    seed: int, purpose: str, step: int = 0, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a fresh generator for one purpose at one step on one rank.

    Args:
        seed: The run's seed.
        purpose: What the draws are for, such as ``"degradation"``; different purposes never share a stream.
        step: Step of the training stream, or the image's index for evaluation draws.
        rank: Rank of the process; different ranks draw different numbers.
        device: Device of the generator.

    Returns:
        A seeded generator.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(_seed_for(seed, purpose, step, rank))
    return generator


class Randomness(ABC):
    """Random numbers for the rows of a batch.

    Attributes:
        batch_size: Number of rows B.
        device: Device of the drawn tensors.
    """

    batch_size: int
    device: torch.device

    @property
    @abstractmethod
    def seed(self) -> int:
        """A number, known to the host, that the draws follow from."""

    def chance(self, purpose: str) -> float:
        """Draw one number uniform in [0, 1) for the whole batch, which the host knows; no stream of a row advances.

        Args:
            purpose: What it is for.
        """
        return torch.rand((), generator=generator_for(self.seed, purpose)).item()

    @abstractmethod
    def uniform(self, *shape: int) -> Tensor:
        """Draw float32 numbers uniform in [0, 1).

        Args:
            *shape: Shape of one row's draw.

        Returns:
            (B, *shape) tensor.
        """

    @abstractmethod
    def normal(self, *shape: int) -> Tensor:
        """Draw float32 standard normal numbers.

        Args:
            *shape: Shape of one row's draw.

        Returns:
            (B, *shape) tensor.
        """

    @abstractmethod
    def select(self, rows: Tensor) -> Randomness:
        """Return the randomness of some rows; draws from it advance the streams of those rows.

        Args:
            rows: (M,) int64 row numbers.

        Returns:
            Randomness with batch size M.
        """


class StepRandomness(Randomness):
    """One vectorised stream for a whole training batch."""

    def __init__(self, generator: torch.Generator, batch_size: int) -> None:
        self.generator = generator
        self.batch_size = batch_size
        self.device = generator.device

    @property
    def seed(self) -> int:
        return self.generator.initial_seed()

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(self.batch_size, *shape, generator=self.generator, device=self.device)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.batch_size, *shape, generator=self.generator, device=self.device)

    def select(self, rows: Tensor) -> StepRandomness:
        return StepRandomness(self.generator, len(rows))


class IndexRandomness(Randomness):
    """One stream per image, drawn on the CPU: the same numbers for any batch, rank and device."""

    def __init__(self, generators: Sequence[torch.Generator], device: torch.device | str = "cpu") -> None:
        self.generators = list(generators)
        self.batch_size = len(self.generators)
        self.device = torch.device(device)

    @classmethod
    def for_images(
        cls, seed: int, purpose: str, index_B: Tensor, device: torch.device | str = "cpu"
    ) -> IndexRandomness:
        """Build the streams of a batch of images.

        Args:
            seed: The evaluation seed.
            index_B: (B,) indices of the images within their split.
            device: Device of the drawn tensors.

        Returns:
            Randomness with one stream per image.
        """
        return cls([generator_for(seed, purpose, step=index) for index in index_B.tolist()], device)

    @property
    def seed(self) -> int:
        return self.generators[0].initial_seed() if self.generators else 0

    def uniform(self, *shape: int) -> Tensor:
        return self._fill(torch.rand, shape)

    def normal(self, *shape: int) -> Tensor:
        return self._fill(torch.randn, shape)

    def _fill(self, draw: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        out = torch.empty(self.batch_size, *shape)
        for row, generator in zip(out, self.generators, strict=True):
            draw(shape, generator=generator, out=row)
        return out.to(self.device)

    def select(self, rows: Tensor) -> IndexRandomness:
        return IndexRandomness([self.generators[row] for row in rows.tolist()], self.device)
