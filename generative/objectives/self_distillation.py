"""Flow maps distilled from their own velocity while it is learnt (arXiv 2505.18825): Lagrangian and progressive.

X(z, t, r) = z - (t - r) u(z, r, t) is the state at r of the flow through z at t. The Eulerian kind is improved MeanFlow with
the predicted target. No gradient reaches what an average velocity is held against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.dual import Dual, primal_of, tangent_of
from generative.float32 import is_rounded, whole_float32
from generative.flow_map import FlowMap, per_image
from generative.objectives.derivative import DerivativeObjective, exactly
from generative.objectives.flow_map import FlowMapObjective, FlowSlice


class _OwnTarget(FlowMapObjective):
    """Holds u against the network itself."""

    def consistency_factors(
        self, error_M: Tensor, time_M: Tensor, velocity_factors_M: Tensor, progress: float
    ) -> Tensor:
        return self.own_target_factors(error_M, time_M, velocity_factors_M, progress)


@checked("objective")
@dataclass(frozen=True)
class LagrangianSelfDistillation(_OwnTarget, DerivativeObjective):
    """Where the map ends it moves with the velocity there: dX/dr = u - (t - r) du/dr regresses sg[v(X, r)].

    The derivative is in the end time alone and has a gradient, so it is followed by a backward pass of its own.
    """

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """Equation of Lagrangian self-distillation, arXiv 2505.18825, section 3."""
        span = per_image(rows.t - rows.r)
        u, dudr = self._end_derivative(flow_map, rows)
        end = rows.z - span * u.detach()
        with torch.no_grad():
            _, target = flow_map.velocities(end, rows.r, rows.r, rows.condition)
        return u - span * dudr, target

    def _end_derivative(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """Return u and du/dr, both with gradient."""
        z = rows.z.float()
        if self.derivative == "exact":
            with exactly(z.device):
                u, _ = flow_map.velocities(z, Dual.of(rows.r, torch.ones_like(rows.r)), rows.t, rows.condition)
                return primal_of(u), tangent_of(u)
        step = (rows.t - rows.r).clamp(max=self.difference_step)
        reduced = is_rounded(z.device)
        with whole_float32(z.device):
            u = flow_map.velocities(z, rows.r, rows.t, rows.condition)[0] if reduced else rows.u
            later, _ = flow_map.velocities(z, rows.r + step, rows.t, rows.condition)
        return u, (later - u) / per_image(step).clamp(min=torch.finfo(torch.float32).tiny)


@checked("objective")
@dataclass(frozen=True)
class ProgressiveSelfDistillation(_OwnTarget):
    """One step is worth two: X(z, t, r) regresses sg[X(X(z, t, s), s, r)], in units of velocity; no derivative.

    Attributes:
        middle: Where s lies between r and t: ``"half"`` of the way, or ``"uniform"``, anywhere.
    """

    middle: Literal["half", "uniform"] = "uniform"

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """Equation of progressive self-distillation, arXiv 2505.18825, section 3."""
        share = rows.randomness.uniform() if self.middle == "uniform" else torch.full_like(rows.t, 0.5)
        s = rows.r + share * (rows.t - rows.r)
        with torch.no_grad():
            first, _ = flow_map.velocities(rows.z, s, rows.t, rows.condition)
            second, _ = flow_map.velocities(rows.z - per_image(rows.t - s) * first, rows.r, s, rows.condition)
        return rows.u, first.lerp(second, per_image(share).to(first.dtype))
