"""Reads a one-time network as a denoiser: from a noisy state to estimates of image, noise and v.

At a timestep with signal a = sqrt(abar) and noise level s = sqrt(1 - abar), z = a x + s e and v = a e - s x (arXiv
2202.00512, appendix D). Given z, any one of image x, noise e and v gives the others, each linear in z and that one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from generative.checks import checked
from generative.schedules.noise import NoiseSchedule
from generative.types import Condition

DenoiserOutput = Literal["noise", "image", "v"]
Network = Callable[[Tensor, Tensor, Condition], tuple[Tensor, ...]]
Scalar = TypeVar("Scalar", float, Tensor)


def conversion(
    source: DenoiserOutput, target: DenoiserOutput, signal: Scalar, noise_level: Scalar
) -> tuple[Scalar, Scalar]:
    """Return the factors (c_z, c_y) of target = c_z z + c_y source.

    Args:
        source: What is known besides z.
        target: What is wanted, another kind than the source.
        signal: sqrt(abar), a float or a tensor; must not be 0 for the source ``noise``.
        noise_level: sqrt(1 - abar), likewise; must not be 0 for the source ``image``.

    Raises:
        ValueError: If the pair of kinds is unknown.
    """
    match source, target:
        case "v", "image":
            return signal, -noise_level
        case "v", "noise":
            return noise_level, signal
        case "image", "noise":
            return 1 / noise_level, -signal / noise_level
        case "image", "v":
            return signal / noise_level, -1 / noise_level
        case "noise", "image":
            return 1 / signal, -noise_level / signal
        case "noise", "v":
            return -noise_level / signal, 1 / signal
    raise ValueError(f"There is no conversion from {source} to {target}: choose among noise, image and v.")


@dataclass(frozen=True)
class Prediction:
    """What a denoiser knows of noisy states; each property converts when it is asked for.

    Attributes:
        z: (B, C, H, W) noisy states that it knows of; samplers go on from them.
        output: (B, C, H, W) output of the network.
        kind: What the output means.
        signal: sqrt(abar): (B, 1, 1, 1), or a float for one timestep in all rows.
        noise_level: sqrt(1 - abar), likewise.
    """

    z: Tensor
    output: Tensor
    kind: DenoiserOutput
    signal: Tensor | float
    noise_level: Tensor | float

    @property
    def image(self) -> Tensor:
        """(B, C, H, W) estimate of the clean image, not clamped."""
        return self._as("image")

    @property
    def noise(self) -> Tensor:
        """(B, C, H, W) estimate of the noise."""
        return self._as("noise")

    @property
    def v(self) -> Tensor:
        """(B, C, H, W) estimate of v."""
        return self._as("v")

    def _as(self, target: DenoiserOutput) -> Tensor:
        if self.kind == target:
            return self.output
        c_z, c_y = conversion(self.kind, target, self.signal, self.noise_level)  # type: ignore[type-var]
        if isinstance(c_y, Tensor):
            return torch.addcmul(c_z * self.z, c_y, self.output)
        return torch.add(c_z * self.z, self.output, alpha=c_y)


@checked("module")
@dataclass(frozen=True)
class Denoiser:
    """A network with one time, the noise schedule it was trained on, and what its output means.

    Attributes:
        network: Called as ``network(z_BCHW, times_B1, condition)``; the first of its outputs is taken.
        output: ``"noise"``, ``"image"`` or ``"v"``.
    """

    network: Network
    schedule: NoiseSchedule
    output: DenoiserOutput = "noise"

    def __post_init__(self) -> None:
        if self.output == "noise" and self.schedule.terminal_snr_is_zero:
            raise ValueError(
                "module.output=noise says nothing of the image where only noise is left, at the last timestep of "
                "schedule.zero_terminal_snr=true: set module.output=v or module.output=image."
            )

    def predict(self, z_BCHW: Tensor, timestep: Tensor | int, condition: Condition) -> Prediction:
        """Run the network once.

        Args:
            z_BCHW: (B, C, H, W) noisy states.
            timestep: (B,) int64 timesteps in [0, T-1], or one for all rows, as samplers have it.

        Returns:
            What the network says of the states, in their dtype.
        """
        if isinstance(timestep, int):
            signal, noise_level = self.schedule.level(timestep)
            times_B1 = z_BCHW.new_full((len(z_BCHW), 1), (timestep + 1) / self.schedule.num_timesteps)
            output = self.network(z_BCHW, times_B1, condition)[0].to(z_BCHW.dtype)
            return Prediction(z_BCHW, output, self.output, signal, noise_level)
        output = self.network(z_BCHW, self.schedule.time(timestep)[:, None], condition)[0].to(z_BCHW.dtype)
        return Prediction(
            z_BCHW, output, self.output, self.schedule.signal(timestep), self.schedule.noise_level(timestep)
        )
