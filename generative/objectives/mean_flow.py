"""MeanFlow objectives with the exact Jacobian-vector product.

Identity (MeanFlow, arXiv 2505.13447, eq. 6): u = v - (t - r) du/dt, with du/dt the derivative of u(z_t, r, t) along
(dz, dr, dt) = (v, 0, 1).

What can go wrong with the derivative, and what is done about it:
- fused attention has no forward-mode derivative: the plain softmax is used inside, on the slice with r < t only;
- reduced precision ruins the tangent: autocast is off inside;
- a tangent in the autograd graph costs memory and time and is not needed, as the loss stops its gradient: no_grad;
- high-frequency time features make du/dt huge: the network embeds times with low frequencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from generative.checks import checked
from generative.flow_map import FlowMap, per_image
from generative.objectives.flow_map import FlowMapObjective, FlowSlice
from generative.types import Condition


def total_derivative(
    flow_map: FlowMap, z_BCHW: Tensor, r_B: Tensor, t_B: Tensor, velocity_BCHW: Tensor, condition: Condition
) -> Tensor:
    """Return du/dt along the flow, exactly, by forward-mode differentiation.

    Args:
        z_BCHW: (B, C, H, W) states at time t.
        r_B: (B,) end times, held fixed.
        t_B: (B,) start times.
        velocity_BCHW: (B, C, H, W) tangent dz/dt.
        condition: Condition of the network, held fixed.

    Returns:
        (B, C, H, W) float32 derivative of u(z_t, r, t), without gradient.
    """

    def average_velocity(z: Tensor, t: Tensor) -> Tensor:
        return flow_map.velocities(z, r_B, t, condition)[0]

    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch.autocast(z_BCHW.device.type, enabled=False):
        return jvp(average_velocity, (z_BCHW.float(), t_B), (velocity_BCHW.float(), torch.ones_like(t_B)))[1]


@checked("objective")
@dataclass(frozen=True)
class MeanFlow(FlowMapObjective):
    """The original objective: u regresses sg[v - (t - r) du/dt], with the conditional velocity as v and as tangent."""

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """MeanFlow eq. 9 and 10."""
        velocity = rows.conditional_velocity
        dudt = total_derivative(flow_map, rows.z, rows.r, rows.t, velocity, rows.condition)
        return rows.u, velocity - per_image(rows.t - rows.r) * dudt


@checked("objective")
@dataclass(frozen=True)
class ImprovedMeanFlow(FlowMapObjective):
    """Improved MeanFlow (arXiv 2512.02012): V = u + (t - r) sg[du/dt] regresses the velocity; the tangent is predicted.

    Attributes:
        target: ``"conditional"``: V regresses e - x, as published. ``"predicted"``: V regresses the network's own velocity
            v(z_t, t), which has the same expectation without the variance of e - x (Eulerian self-distillation,
            arXiv 2505.18825); the weight is then set by the velocity head's error, so that both heads keep one scale.
    """

    target: Literal["conditional", "predicted"] = "conditional"

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """Improved MeanFlow, section 4."""
        dudt = total_derivative(flow_map, rows.z, rows.r, rows.t, rows.v, rows.condition)
        compound = rows.u + per_image(rows.t - rows.r) * dudt
        return compound, rows.v if self.target == "predicted" else rows.conditional_velocity

    def consistency_factors(
        self, error_M: Tensor, time_M: Tensor, velocity_factors_M: Tensor, progress: float
    ) -> Tensor:
        return velocity_factors_M if self.target == "predicted" else self.weight.factors(error_M, time_M)
