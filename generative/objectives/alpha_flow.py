"""AlphaFlow (arXiv 2510.20771): from trajectory flow matching to MeanFlow by shrinking a finite step; no JVP."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from generative.checks import checked
from generative.flow_map import FlowMap, per_image
from generative.objectives.flow_map import FlowMapObjective, FlowSlice
from generative.ranges import Positive, PositiveShare, Share

TARGET_LIMIT = 4.0  # the paper's code clamps the target; velocities of images in [-1, 1] rarely reach it


@checked("objective")
@dataclass(frozen=True)
class AlphaFlow(FlowMapObjective):
    """Regresses u(z_t, r, t) on a v + (1 - a) sg[u(z_s, r, s)] with s = a r + (1 - a) t and z_s = z_t - (t - s) v.

    Attributes:
        midpoint: Share at which a passes one half, of the training, or of what follows ``velocity_only_share`` of it.
        sharpness: Steepness of the sigmoid that takes a from 1 to ``minimum``.
        minimum: Smallest a: the finite step that remains in place of the derivative.
    """

    midpoint: Share = 0.4
    sharpness: Positive = 20.0
    minimum: PositiveShare = 0.05

    def alpha(self, progress: float) -> float:
        """Return the relative step size.

        Args:
            progress: Share of the training done, in [0, 1].

        Returns:
            a in [minimum, 1].
        """
        if 0 < self.velocity_only_share < 1:
            progress = (progress - self.velocity_only_share) / (1 - self.velocity_only_share)
        return max(self.minimum, (1 - math.tanh(self.sharpness * (progress - self.midpoint) / 2)) / 2)

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """AlphaFlow eq. 8."""
        alpha = self.alpha(rows.progress)
        s = alpha * rows.r + (1 - alpha) * rows.t
        z_s = rows.z - per_image(rows.t - s) * rows.conditional_velocity
        with torch.no_grad():
            u_s, _ = flow_map.velocities(z_s, rows.r, s, rows.condition)
        target = alpha * rows.conditional_velocity + (1 - alpha) * u_s
        return rows.u, target.clamp(-TARGET_LIMIT, TARGET_LIMIT)

    def consistency_factors(
        self, error_M: Tensor, time_M: Tensor, velocity_factors_M: Tensor, progress: float
    ) -> Tensor:
        """See ``FlowMapObjective.consistency_factors``.

        The error is of order a^2, so the factor a^(2 power - 1) keeps the MeanFlow loss as its limit for every power: the
        published a / (L + c) for power 1, the plain a^-1 L for power 0.
        """
        return self.alpha(progress) ** (2 * self.weight.power - 1) * self.weight.factors(error_M, time_M, progress)
