"""The derivative of a flow map's average velocity along a direction: exactly, or by a difference.

What can go wrong with it, and what is done about it:
- reduced precision ruins it, be it autocast's or TF32's: it is taken in whole float32, where a difference also needs the
  forward pass's own u;
- fused attention has no forward-mode derivative: it has a rule of its own (``generative.dual``), or the plain softmax;
- compiling around forward mode can give wrong tangents: the exact derivative runs uncompiled;
- high-frequency time features make du/dt huge, and a difference blind to it: DiT embeds times with low frequencies, and
  ``MeanFlow`` refuses differences of networks that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from generative.dual import Dual, tangent_of
from generative.float32 import is_rounded, whole_float32
from generative.flow_map import FlowMap, per_image
from generative.objectives.flow_map import FlowMapObjective, FlowSlice
from generative.types import Condition

Derivative = Literal["exact", "difference"]
DifferenceStep = Annotated[float, Ge(1e-4), Le(0.1)]  # below, float32's rounding drowns the difference


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Run a network in float32, uncompiled, with an attention that can be differentiated forward."""
    with (
        sdpa_kernel(SDPBackend.MATH),
        whole_float32(device),
        torch.compiler.set_stance("force_eager"),
    ):
        yield


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
    with torch.no_grad(), exactly(z_BCHW.device):
        z, t = Dual.of(z_BCHW.float(), velocity_BCHW.float()), Dual.of(t_B, torch.ones_like(t_B))
        return tangent_of(flow_map.velocities(z, r_B, t, condition)[0])


def total_difference(
    flow_map: FlowMap,
    u_BCHW: Tensor,
    z_BCHW: Tensor,
    r_B: Tensor,
    t_B: Tensor,
    velocity_BCHW: Tensor,
    condition: Condition,
    step: float,
) -> Tensor:
    """Return du/dt along the flow by a backward difference, which costs one forward pass without gradient.

    Where t - r is shorter than the step it reaches back to r alone, so no time leaves [r, t]; times (t - r), as the identity
    has it, the rounding error stays bounded there.

    Args:
        u_BCHW: (B, C, H, W) average velocities of the network at (z, r, t); taken again where they are not float32.
        z_BCHW: (B, C, H, W) states at time t.
        r_B: (B,) end times, held fixed.
        t_B: (B,) start times.
        velocity_BCHW: (B, C, H, W) direction dz/dt.
        condition: Condition of the network, held fixed.
        step: How far back in time.

    Returns:
        (B, C, H, W) float32 difference quotient, without gradient.
    """
    span = (t_B - r_B).clamp(max=step)
    reduced = u_BCHW.dtype != torch.float32 or is_rounded(z_BCHW.device)
    with torch.no_grad(), whole_float32(z_BCHW.device):
        z = z_BCHW.float()
        u = flow_map.velocities(z, r_B, t_B, condition)[0] if reduced else u_BCHW.detach()
        before = flow_map.velocities(z - per_image(span) * velocity_BCHW.float(), r_B, t_B - span, condition)[0]
        return (u - before) / per_image(span).clamp(min=torch.finfo(torch.float32).tiny)


@dataclass(frozen=True)
class DerivativeObjective(FlowMapObjective):
    """A flow-map objective with a derivative of u in it.

    Attributes:
        derivative: ``"exact"``: by forward-mode differentiation; ``"difference"``: by a difference of two forward passes, one
            of which is there anyway.
        difference_step: Distance of the two in time. On networks trained for images 0.002 is right to about 1 %; longer
            ones are in proportion worse, and far shorter ones round.
    """

    derivative: Derivative = "exact"
    difference_step: DifferenceStep = 2e-3

    @property
    def compared_over(self) -> float | None:
        return self.difference_step if self.derivative == "difference" else None

    def total_derivative(self, flow_map: FlowMap, rows: FlowSlice, velocity_MCHW: Tensor) -> Tensor:
        """Return du/dt of some rows along a velocity.

        Args:
            velocity_MCHW: (M, C, H, W) direction dz/dt.

        Returns:
            (M, C, H, W) float32, without gradient.
        """
        state = rows.z, rows.r, rows.t, velocity_MCHW, rows.condition
        if self.derivative == "exact":
            return total_derivative(flow_map, *state)
        return total_difference(flow_map, rows.u, *state, step=self.difference_step)
