"""The distribution of the pairs of times (r, t), end and start, at which a flow-map loss is computed.

MeanFlow (arXiv 2505.13447, section 4.3) draws two times from a logit-normal distribution, orders them and sets r = t for a
share of the batch. For restoration a share stands exactly at r = t = 1, where the velocity head gives the MMSE answer, and a
share of the rest at r = 0, the end time of the one-step sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.randomness import Randomness
from generative.ranges import NonNegative, Share

# Of a share, what rounding may miss it by: the shapes of the batches stay the same then, as compilers want.
LARGEST_MISS = 0.1


@dataclass(frozen=True)
class TimePairs:
    """Times of a batch, rows with r < t first.

    Attributes:
        r_B: (B,) end times in [0, t].
        t_B: (B,) start times in [0, 1].
        num_distinct: Number of leading rows with r < t; in the others r = t.
    """

    r_B: Tensor
    t_B: Tensor
    num_distinct: int


@checked("objective.time_distribution")
@dataclass(frozen=True)
class TimeDistribution:
    """Draws pairs of times; the shares are exact in each batch up to rounding, and on average where that would miss them.

    Few images do not divide into the shares: of one image none would have r < t if its share were rounded.

    Attributes:
        distribution: ``"logit_normal"`` (sigmoid of a normal) or ``"uniform"``.
        mean: Mean of the normal.
        std: Standard deviation of the normal.
        distinct_share: Share of the batch with r < t.
        terminal_share: Share of the batch with r = t = 1.
        zero_share: Share of the rows with r < t whose r is exactly 0.
    """

    distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    mean: float = -0.4
    std: NonNegative = 1.0
    distinct_share: Share = 0.5
    terminal_share: Share = 0.15
    zero_share: Share = 0.0

    def __post_init__(self) -> None:
        if self.distinct_share + self.terminal_share > 1:
            raise ValueError("objective.time_distribution.distinct_share + terminal_share must not exceed 1.")

    def __call__(self, randomness: Randomness, distinct: bool = True) -> TimePairs:
        """Draw the times of a batch.

        Args:
            randomness: Source of B rows.
            distinct: False sets r = t everywhere (plain flow matching).
        """
        size = randomness.batch_size
        num_distinct, num_terminal = self._counts(randomness, distinct)
        first, second, pick = self._draw(randomness), self._draw(randomness), randomness.uniform()
        row = torch.arange(size, device=first.device)
        t = torch.where(row < num_distinct, torch.maximum(first, second), first)
        t = torch.where(row >= size - num_terminal, 1.0, t)
        r = torch.where(pick < self.zero_share, 0.0, torch.minimum(first, second))
        return TimePairs(torch.where(row < num_distinct, r, t), t, num_distinct)

    def _counts(self, randomness: Randomness, distinct: bool) -> tuple[int, int]:
        """Numbers of rows with r < t and with r = t = 1."""
        first = randomness.batch_size * self.distinct_share if distinct else 0.0
        last = randomness.batch_size * self.terminal_share
        misses = [abs(round(rows) - rows) > LARGEST_MISS * rows for rows in (first, last)]
        if not any(misses):
            return round(first), round(last)
        # One number moves the ends of both kinds, which lie one after the other: of shares that fill the batch none overlap.
        moved = randomness.chance("rows of the times")
        num_first = math.floor(first + moved)
        num_last = math.floor(first + last + moved) - num_first
        return num_first if misses[0] else round(first), num_last if misses[1] else round(last)

    def _draw(self, randomness: Randomness) -> Tensor:
        if self.distribution == "uniform":
            return randomness.uniform()
        return torch.sigmoid(self.mean + self.std * randomness.normal())
