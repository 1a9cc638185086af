"""Learning-rate factors as pure functions of the optimiser step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from generative.checks import checked
from generative.ranges import Share, WholeNumber


@checked("scheduler")
@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up, then half a cosine down to a final share (SGDR without restarts, arXiv 1608.03983).

    Attributes:
        total_steps: Optimiser steps of the whole run.
        warmup_steps: Steps of the linear rise; at most a tenth of the run is used, so that short runs warm up too.
        final_share: Share of the peak rate at the last step.
    """

    total_steps: int
    warmup_steps: WholeNumber = 200
    final_share: Share = 0.02

    def __call__(self, step: int) -> float:
        """Return the factor of one step.

        Args:
            step: Optimiser step, from 0.

        Returns:
            Factor of the peak learning rate in (0, 1].
        """
        warmup = min(self.warmup_steps, self.total_steps // 10)
        rise = min(1.0, (step + 1) / (warmup + 1))
        progress = min(1.0, max(0.0, (step - warmup) / max(1, self.total_steps - warmup)))
        return rise * (self.final_share + (1 - self.final_share) * 0.5 * (1 + math.cos(math.pi * progress)))
