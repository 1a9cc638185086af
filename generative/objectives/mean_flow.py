"""MeanFlow objectives.

Identity (MeanFlow, arXiv 2505.13447, eq. 6): u = v - (t - r) du/dt, with du/dt the derivative of u(z_t, r, t) along
(dz, dr, dt) = (v, 0, 1). The loss stops its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from generative.checks import checked
from generative.flow_map import FlowMap, per_image
from generative.objectives.derivative import DerivativeObjective
from generative.objectives.flow_map import FlowSlice


@checked("objective")
@dataclass(frozen=True)
class MeanFlow(DerivativeObjective):
    """The original objective: u regresses sg[v - (t - r) du/dt], with the conditional velocity as v and as tangent."""

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """MeanFlow eq. 9 and 10."""
        velocity = rows.conditional_velocity
        dudt = self.total_derivative(flow_map, rows, velocity)
        return rows.u, velocity - per_image(rows.t - rows.r) * dudt


@checked("objective")
@dataclass(frozen=True)
class ImprovedMeanFlow(DerivativeObjective):
    """Improved MeanFlow (arXiv 2512.02012): V = u + (t - r) sg[du/dt] regresses the velocity; the tangent is predicted.

    Attributes:
        target: ``"conditional"``: V regresses e - x, as published. ``"predicted"``: V regresses the network's own velocity
            v(z_t, t), which has the same expectation without the variance of e - x (Eulerian self-distillation,
            arXiv 2505.18825); the weight is then that of ``own_target_factors``.
    """

    target: Literal["conditional", "predicted"] = "conditional"

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """Improved MeanFlow, section 4."""
        compound = rows.u + per_image(rows.t - rows.r) * self.total_derivative(flow_map, rows, rows.v)
        return compound, rows.v if self.target == "predicted" else rows.conditional_velocity

    def consistency_factors(
        self, error_M: Tensor, time_M: Tensor, velocity_factors_M: Tensor, progress: float
    ) -> Tensor:
        factors = self.own_target_factors if self.target == "predicted" else super().consistency_factors
        return factors(error_M, time_M, velocity_factors_M, progress)
