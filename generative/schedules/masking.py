"""How many tokens are masked: schedules gamma of masked token modelling.

MaskGIT (Chang et al. 2022, arXiv 2202.04200, section 3.3): after the share r of the decoding steps ceil(gamma(r) M) of the M
unknown tokens are still masked; in training gamma(r) of the tokens are, for a random r. Halton-MaskGIT (arXiv 2503.17076)
decodes with gamma(r) = arccos(r) / (pi / 2).

Shape legend: B batch, N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked

GradualSchedule = Literal["cosine", "half_cosine", "linear", "square", "sqrt", "stair", "arccos"]
ScheduleName = Literal[GradualSchedule, "one_shot"]
NUM_STAIRS = 10
ROUNDING = 1e-6  # relative; float32 errs by about 1e-7, and 0.3 / 0.1 and 0.1 * 30 must not fall on the wrong side


def _cosine(progress: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * (1 - progress))  # cos(pi r / 2), and exactly 0 at the end


_SCHEDULES: dict[ScheduleName, Callable[[Tensor], Tensor]] = {
    "cosine": _cosine,
    "half_cosine": lambda progress: _cosine(progress).square(),  # (1 + cos(pi r)) / 2
    "linear": lambda progress: 1 - progress,
    "square": lambda progress: 1 - progress.square(),
    "sqrt": lambda progress: 1 - progress.sqrt(),
    "stair": lambda progress: (NUM_STAIRS - (progress * NUM_STAIRS * (1 + ROUNDING)).floor()) / NUM_STAIRS,
    "one_shot": lambda progress: (progress <= 0).to(progress.dtype),
    "arccos": lambda progress: torch.acos(progress) * (2 / math.pi),
}


@checked("schedule")
@dataclass(frozen=True)
class MaskSchedule:
    """Share of the unknown tokens that is still masked.

    Attributes:
        name: ``cosine`` cos(pi r / 2), ``half_cosine`` (1 + cos(pi r)) / 2, ``linear`` 1 - r, ``square`` 1 - r^2, ``sqrt``
            1 - sqrt(r), ``stair`` 1 - floor(10 r) / 10, ``one_shot`` 0 from the first step on, or ``arccos``
            arccos(r) / (pi / 2).
    """

    name: ScheduleName = "cosine"

    def __call__(self, progress: Tensor) -> Tensor:
        """Return the masked share.

        Args:
            progress: Share r of the steps that are done, float in [0, 1], of any shape.

        Returns:
            gamma(r) of the same shape and dtype: non-increasing, exactly 1 at r = 0 and exactly 0 at r = 1.
        """
        return _SCHEDULES[self.name](progress)

    def masked_after(self, step: int, num_steps: int | Tensor, unknown_B: Tensor) -> Tensor:
        """Return how many tokens the schedule leaves masked after a step.

        Args:
            step: Step i of the decoding, from 1; 0 is its start.
            num_steps: Number of steps T; one for all rows, or (B,). After the last of them nothing is masked.
            unknown_B: (B,) int64 number M of tokens that were unknown at the start of each row.

        Returns:
            (B,) int64 ceil(gamma(i/T) M).
        """
        done = torch.tensor(
            step, dtype=torch.float64
        )  # a bare number over a tensor is rounded twice: 49 / 49 is below 1
        return masked_count(self((done / num_steps).clamp(max=1)), unknown_B)

    def masked_after_steps(self, num_steps: int, unknown_B: Tensor) -> Tensor:
        """Return how many tokens are masked after each step of a decoding whose every step accepts some.

        A row takes T = min(``num_steps``, M) steps. ``masked_after`` holds but for what is needed to leave at least one fewer
        than before, and at least one for each step to come; google-research/maskgit does so with
        ``max(1, min(unknown - 1, ...))``.

        Args:
            num_steps: The most steps of a row.
            unknown_B: (B,) int64 number M of tokens that are unknown at the start of each row; on the CPU.

        Returns:
            (``num_steps``, B) int64 numbers, which fall in each row until they are 0.
        """
        steps_B = unknown_B.clamp(max=num_steps)
        left_B, after = unknown_B, []
        for step in range(1, num_steps + 1):
            left_B = (
                self.masked_after(step, steps_B, unknown_B).minimum(left_B - 1).maximum(steps_B - step).clamp(min=0)
            )
            after.append(left_B)
        return torch.stack(after)


def masked_count(share: Tensor | float, total_B: Tensor) -> Tensor:
    """Return the smallest whole number of tokens that makes up a share, up to the rounding of floats.

    Args:
        share: Share in [0, 1]; one for all rows, or (B,).
        total_B: (B,) int64 number of tokens, less than a million.

    Returns:
        (B,) int64 ceil(share total).
    """
    return (total_B * share * (1 - ROUNDING)).ceil().long()


def largest(score_BN: Tensor, count_B: Tensor) -> Tensor:
    """Mark the tokens with the largest scores, exactly as many as asked for; of equal ones the first.

    Args:
        score_BN: (B, N) scores.
        count_B: (B,) number of tokens to mark in each row, at most N.

    Returns:
        (B, N) bool map.
    """
    order_BN = score_BN.argsort(dim=1, descending=True, stable=True)
    within_BN = torch.arange(score_BN.shape[1], device=score_BN.device) < count_B[:, None]
    return torch.zeros_like(within_BN).scatter(1, order_BN, within_BN)
