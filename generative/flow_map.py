"""Reads a two-time network as a flow map: average velocity u(z_t, r, t) and instantaneous velocity v(z_t, t).

Convention (MeanFlow, arXiv 2505.13447): z_t = (1 - t) x + t e with data x at t = 0 and the source e at t = 1, v = e - x,
u(z_t, r, t) = 1/(t - r) * integral of v from r to t, so that z_r = z_t - (t - r) u(z_t, r, t).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.denoiser import Network
from generative.types import Condition

FlowMapOutput = Literal["image", "velocity"]
MIN_TIME = 0.05  # pixel MeanFlow (arXiv 2601.22158) and JiT (arXiv 2511.13720) divide by clip(t, 0.05, 1)


def per_image(t_B: Tensor) -> Tensor:
    """Shape per-image scalars for broadcasting over images.

    Args:
        t_B: (B,) scalars.

    Returns:
        (B, 1, 1, 1) view.
    """
    return t_B[:, None, None, None]


@checked("module")
@dataclass(frozen=True)
class FlowMap:
    """A network with two times (t, t - r) and two heads (u, v), and what its outputs mean.

    Attributes:
        network: Called as ``network(z_BCHW, times_BT, condition)``; returns the outputs of the u and v heads.
        guided: Whether the network has a third time, the condition's ``guidance``.
        output: ``"image"``: each head gives an estimate of the image, velocity = (z - image) / clip(t, 0.05, 1);
            ``"velocity"``: each head gives the velocity itself.
    """

    network: Network
    output: FlowMapOutput = "image"
    guided: bool = False

    def velocities(self, z_BCHW: Tensor, r_B: Tensor, t_B: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        """Return average and instantaneous velocity.

        Args:
            z_BCHW: (B, C, H, W) states at time t.
            r_B: (B,) end times in [0, t].
            t_B: (B,) start times in [0, 1].

        Returns:
            u(z_t, r, t) and v(z_t, t), each (B, C, H, W), in the states' dtype.
        """
        times = [t_B, t_B - r_B]
        if self.guided:
            times.append(torch.zeros_like(r_B) if condition.guidance is None else condition.guidance)
        u, v = (head.to(z_BCHW.dtype) for head in self.network(z_BCHW, torch.stack(times, dim=1), condition))
        if self.output == "image":
            t = per_image(t_B).clamp(MIN_TIME, 1.0)
            u, v = (z_BCHW - u) / t, (z_BCHW - v) / t
        return u, v

    def mean(self, state_BCHW: Tensor, condition: Condition) -> Tensor:
        """Estimate the clean image at t = 1: E[x | state, condition], the answer of least squared error.

        The state at t = 1 is the source e, and e - v(e, 1) estimates x. Independent noise tells nothing of x: then the
        answer is E[x | condition] for every state, and the objective may teach it at a state of its choice.

        Args:
            state_BCHW: (B, C, H, W) states at t = 1.

        Returns:
            (B, C, H, W) images, not clamped.
        """
        one = torch.ones(len(state_BCHW), device=state_BCHW.device)
        return state_BCHW - self.velocities(state_BCHW, one, one, condition)[1]
