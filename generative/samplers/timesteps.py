"""Which timesteps a sampler visits (arXiv 2305.08891, table 2)."""

from __future__ import annotations

from typing import Literal

Spacing = Literal["leading", "linspace", "trailing"]


def spaced_timesteps(spacing: Spacing, num_steps: int, num_timesteps: int) -> list[int]:
    """Choose k of T timesteps.

    Args:
        spacing: ``"trailing"`` ends its first interval at T-1, ``"leading"`` starts its last at 0, ``"linspace"`` has both.
        num_steps: Number of steps k.
        num_timesteps: Number of timesteps T.

    Returns:
        k falling timesteps in [0, T-1].

    Raises:
        ValueError: If there are too many steps, or so few that a sampler would start at the clean end.
    """
    if num_steps > num_timesteps:
        raise ValueError(
            f"sampler.num_steps asks for {num_steps} timesteps with sampler.spacing={spacing}, but "
            f"schedule.num_timesteps={num_timesteps}: lower sampler.num_steps."
        )
    if spacing == "trailing":
        # the float arithmetic of numpy.arange(T, 0, -T/k), so that ties round as in the reference implementations
        step = (num_timesteps - num_timesteps / num_steps) - num_timesteps
        return [round(num_timesteps + i * step) - 1 for i in range(num_steps)]
    if num_steps == 1:
        raise ValueError(f"sampler.spacing={spacing} has no single step from noise: set sampler.spacing=trailing.")
    step = num_timesteps // num_steps if spacing == "leading" else (num_timesteps - 1) / (num_steps - 1)
    return [round(i * step) for i in reversed(range(num_steps))]
