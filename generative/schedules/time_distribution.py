"""The distribution of the pairs of times (r, t), end and start, at which a flow-map loss is computed.

MeanFlow (arXiv 2505.13447, section 4.3) draws two times from a logit-normal distribution, orders them and sets r = t for a
share of the batch. For restoration a share stands exactly at r = t = 1, where the velocity head gives the MMSE answer, and a
share of the rest at r = 0, the end time of the one-step sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.randomness import Randomness
from generative.ranges import NonNegative, Share


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
    """Draws pairs of times; the shares are exact in each batch up to rounding.

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
        num_distinct = round(size * self.distinct_share) if distinct else 0
        num_terminal = round(size * self.terminal_share)
        first, second, pick = self._draw(randomness), self._draw(randomness), randomness.uniform()
        row = torch.arange(size, device=first.device)
        t = torch.where(row < num_distinct, torch.maximum(first, second), first)
        t = torch.where(row >= size - num_terminal, 1.0, t)
        r = torch.where(pick < self.zero_share, 0.0, torch.minimum(first, second))
        return TimePairs(torch.where(row < num_distinct, r, t), t, num_distinct)

    def _draw(self, randomness: Randomness) -> Tensor:
        if self.distribution == "uniform":
            return randomness.uniform()
        return torch.sigmoid(self.mean + self.std * randomness.normal())
