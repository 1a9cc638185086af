"""Weights that bring the squared errors of a flow map's rows to one size; what they do to the minimiser.

The adaptive weight of the papers (MeanFlow, arXiv 2505.13447, section 4.3; after Consistency Models Made Easy, 2406.14548)
divides each row's error L by sg[(L + c)^p]. The gradient is then that of a concave function of L: for p = 1/2 the minimiser
is the geometric median of the targets, for p = 1 nearly a mode, and only for p = 0 their mean. A weight that does not know
the row's own error keeps the mean as the minimiser for every p.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.ranges import NonNegative, Positive

NUM_NEIGHBOURS = 8  # rows of the batch whose times are nearest
ANNEALING = 0.5, 0.9  # shares of the training


def squared_error(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Return per-image squared errors.

    Args:
        a_BCHW: (B, C, H, W) tensor.
        b_BCHW: (B, C, H, W) tensor.

    Returns:
        (B,) squared errors, summed over channels and pixels.
    """
    return (a_BCHW - b_BCHW).square().flatten(1).sum(dim=1)


def neighbours_error(error_B: Tensor, time_B: Tensor) -> Tensor:
    """Return the mean error of the other rows whose times are nearest; a row's own error has no part in it.

    Args:
        error_B: (B,) errors.
        time_B: (B,) times; of equal ones those next to it in the batch count.

    Returns:
        (B,) means without gradient; ones where a row is alone.
    """
    size = len(error_B)
    if size == 1:
        return torch.ones_like(error_B)
    order = time_B.argsort(stable=True)
    others = min(NUM_NEIGHBOURS, size - 1)
    position = torch.arange(size, device=error_B.device)
    first = (position - others // 2).clamp(0, size - 1 - others)
    window = first[:, None] + torch.arange(others + 1, device=error_B.device)  # the row itself is one of these
    own = window == position[:, None]
    means = error_B.detach()[order][window].masked_fill(own, 0).sum(1) / others
    return torch.empty_like(means).scatter_(0, order, means)


@checked("objective.weight")
@dataclass(frozen=True)
class AdaptiveWeight:
    """Divides each row's error by a magnitude, L / sg[(magnitude + offset)^power].

    Attributes:
        power: 0 is plain squared error; 1, the default of the papers, brings all times to one size.
        offset: Added to the summed squared error; 1e-3 in MeanFlow, 1e-2 in improved MeanFlow.
        magnitude: ``"time"``: the mean error of the other rows of the batch at about the same time, which leaves the
            minimiser, the expectation, as it is. ``"own"``: the row's own error, as published: easy rows are learnt sooner,
            but the minimiser moves towards the likelier answer.
        terminal: The same for the rows with r = t = 1, whose velocity is to be the mean. ``"unbiased"``: the mean error of the
            other such rows; ``"annealed"``: ``"own"`` in the first half of the training, and from there to that at 90 %;
            ``"alike"``: as other rows.
    """

    power: NonNegative = 1.0
    offset: Positive = 1e-2
    magnitude: Literal["time", "own"] = "own"
    terminal: Literal["unbiased", "annealed", "alike"] = "unbiased"

    def factors(
        self, error_B: Tensor, time_B: Tensor, progress: float = 1.0, terminal_B: Tensor | None = None
    ) -> Tensor:
        """Return the factors of a batch's errors.

        Args:
            error_B: (B,) summed squared errors.
            time_B: (B,) times of the rows.
            progress: Share of the training done, in [0, 1].
            terminal_B: (B,) True for the rows that ``terminal`` is about; None for no row.

        Returns:
            (B,) factors without gradient.
        """
        own = error_B.detach()
        neighbours = neighbours_error(own, time_B)
        factors = ((own if self.magnitude == "own" else neighbours) + self.offset).pow(-self.power)
        if terminal_B is None or self.terminal == "alike":
            return factors
        others = terminal_B.sum() - 1
        means = (own.where(terminal_B, 0).sum() - own).clamp(min=0) / others.clamp(min=1)
        unbiased = (torch.where(others > 0, means, neighbours) + self.offset).pow(-self.power)
        if self.terminal == "annealed":
            begin, end = ANNEALING
            done = min(1.0, max(0.0, (progress - begin) / (end - begin)))
            unbiased = (own + self.offset).pow(-self.power * (1 - done)) * unbiased.pow(done)
        return torch.where(terminal_B, unbiased, factors)
