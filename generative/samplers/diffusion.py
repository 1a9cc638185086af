"""Samplers of diffusions, from noise at the last timestep to the image, in k of the T timesteps.

Every step is a linear combination of the state z, the estimate of the image, the estimate before it and fresh noise, whose
factors depend on the schedule alone. So a sampler is a rule for four numbers, taken in float64 before the step runs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from generative.checks import checked
from generative.denoiser import Denoiser
from generative.randomness import Randomness
from generative.ranges import Count, PositiveShare, Share
from generative.samplers.timesteps import Spacing, spaced_timesteps
from generative.schedules.noise import CLEAN, Level, NoiseSchedule
from generative.types import Condition, State


class Step(NamedTuple):
    """Factors of one step: z' = state z + image x + previous_image x_previous + noise e.

    Attributes:
        state: Factor of the state.
        image: Factor of the estimate of the image.
        previous_image: Factor of the estimate of the step before.
        noise: Standard deviation of the fresh noise.
    """

    state: float
    image: float
    previous_image: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class DiffusionSampler(ABC):
    """Walks from noise to an image.

    Attributes:
        num_steps: Number of steps k, one network call each.
        spacing: Which timesteps (arXiv 2305.08891, table 2): ``"trailing"`` starts at the last one, where the state is
            noise; ``"leading"`` starts before it, where the network expects some signal; ``"linspace"`` has both ends.
        threshold: What holds estimates of the image in range: ``"clip"`` to [-1, 1], ``"dynamic"`` (arXiv 2205.11487,
            section 2.3), or ``"none"``.
        threshold_quantile: Quantile of the absolute values of an image that dynamic thresholding scales to 1.
        sufficient_steps: With so many steps at its other defaults and the exact network, where a Gaussian posterior is half as
            wide as the data, the samples' mean is within 0.03 standard deviations of the posterior's and their spread between
            0.95 and 1.05 of it; None where nobody measured it. A narrower posterior needs more.
    """

    sufficient_steps: ClassVar[int | None] = None
    num_steps: Count = 50
    spacing: Spacing = "trailing"
    threshold: Literal["none", "clip", "dynamic"] = "clip"
    threshold_quantile: PositiveShare = 0.995

    def __post_init__(self) -> None:
        if self.threshold != "dynamic" and self.threshold_quantile != type(self).threshold_quantile:
            raise ValueError(
                f"sampler.threshold_quantile={self.threshold_quantile:g} has no effect with "
                f"sampler.threshold={self.threshold}: leave it out, or set sampler.threshold=dynamic."
            )

    @property
    def num_network_calls(self) -> int:
        """Network calls per image."""
        return self.num_steps

    def timesteps(self, schedule: NoiseSchedule) -> list[int]:
        """Return the k timesteps at which the network is called.

        Returns:
            Falling timesteps in [0, T-1].
        """
        return spaced_timesteps(self.spacing, self.num_steps, schedule.num_timesteps)

    @abstractmethod
    def step(self, before: Level | None, now: Level, then: Level) -> Step:
        """Return the factors of one step.

        Args:
            before: Level of the step before; None in the first step.
            now: Level of the state.
            then: Level to move to; ``CLEAN`` in the last step.
        """

    def states(
        self, denoiser: Denoiser, noise_BCHW: Tensor, condition: Condition, randomness: Randomness
    ) -> Iterator[State]:
        """Yield the state after each step, with the estimate of the image it used.

        Args:
            noise_BCHW: (B, C, H, W) standard normal noise to start from.
            randomness: Source of the noise of stochastic steps.

        Yields:
            k states; the last z is the image.
        """
        timesteps = self.timesteps(denoiser.schedule)
        levels = [*map(denoiser.schedule.level, timesteps), CLEAN]
        z, image = noise_BCHW, noise_BCHW
        for i, timestep in enumerate(timesteps):
            factors = self.step(levels[i - 1] if i else None, levels[i], levels[i + 1])
            answer = denoiser.predict(z, timestep, condition)
            previous, image = image, self._threshold(answer.image)
            z = torch.add(factors.state * answer.z, image, alpha=factors.image)
            if factors.previous_image:
                z = torch.add(z, previous, alpha=factors.previous_image)
            if factors.noise:
                z = torch.add(z, randomness.normal(*z.shape[1:]), alpha=factors.noise)
            yield State(z, image)

    def __call__(self, denoiser: Denoiser, noise_BCHW: Tensor, condition: Condition, randomness: Randomness) -> Tensor:
        """Return the sampled images.

        Args:
            noise_BCHW: (B, C, H, W) standard normal noise to start from.
            randomness: Source of the noise of stochastic steps.

        Returns:
            (B, C, H, W) images, the last estimates: in range as far as the threshold holds them there.
        """
        for state in self.states(denoiser, noise_BCHW, condition, randomness):
            z = state.z
        return z

    def _threshold(self, image_BCHW: Tensor) -> Tensor:
        if self.threshold == "none":
            return image_BCHW
        if self.threshold == "clip":
            return image_BCHW.clamp(-1, 1)
        limit = image_BCHW.abs().flatten(1).quantile(self.threshold_quantile, dim=1).clamp(min=1)[:, None, None, None]
        return image_BCHW.clamp(-limit, limit) / limit


@checked("sampler")
@dataclass(frozen=True)
class DDIM(DiffusionSampler):
    """DDIM (arXiv 2010.02502, eq. 12 and 16): deterministic for eta 0, as stochastic as DDPM for eta 1.

    The direction towards z is taken from the thresholded image, so that state and estimate agree.

    Attributes:
        eta: Share of the posterior's standard deviation that is drawn anew.
    """

    sufficient_steps: ClassVar[int] = 150
    eta: Share = 0.0

    def step(self, before: Level | None, now: Level, then: Level) -> Step:
        std = self.eta * posterior_std(now, then)
        state = math.sqrt(max(0.0, then.noise**2 - std**2)) / now.noise
        return Step(state, then.signal - now.signal * state, noise=std)


@checked("sampler")
@dataclass(frozen=True)
class Ancestral(DiffusionSampler):
    """DDPM's sampler (arXiv 2006.11239, algorithm 2), on all timesteps or on some.

    Attributes:
        variance: ``"small"``, the posterior's (right for data that is one point), or ``"large"``, beta (right for standard
            normal data). With few steps ``"large"`` keeps the spread, of which 20 steps of ``"small"`` lose a quarter.
    """

    sufficient_steps: ClassVar[int] = 320
    num_steps: Count = 1000
    variance: Literal["small", "large"] = "small"

    def step(self, before: Level | None, now: Level, then: Level) -> Step:
        """arXiv 2006.11239, eq. 7. The last step draws nothing."""
        ratio = now.signal / then.signal
        beta = 1 - ratio**2
        std = posterior_std(now, then) if self.variance == "small" or then == CLEAN else math.sqrt(beta)
        return Step(ratio * then.noise**2 / now.noise**2, then.signal * beta / now.noise**2, noise=std)


@checked("sampler")
@dataclass(frozen=True)
class DPMSolverPP2M(DiffusionSampler):
    """DPM-Solver++ 2M (arXiv 2211.01095, algorithm 2): deterministic, second order, one network call per step.

    The first step is of first order, without an estimate before it, and so is the last, whose end is infinitely far in
    log-SNR. From zero terminal SNR the second step is of first order too: its memory is infinitely far away.
    """

    sufficient_steps: ClassVar[int] = 60
    num_steps: Count = 20

    def timesteps(self, schedule: NoiseSchedule) -> list[int]:
        """Leaves out timestep 0, whose step to the image would be wasted."""
        if self.spacing == "trailing":
            return super().timesteps(schedule)
        return spaced_timesteps(self.spacing, self.num_steps + 1, schedule.num_timesteps)[:-1]

    def step(self, before: Level | None, now: Level, then: Level) -> Step:
        state = then.noise / now.noise
        image = then.signal - now.signal * state
        if before is None or then == CLEAN:
            return Step(state, image)
        extrapolation = (_log_snr(then) - _log_snr(now)) / (_log_snr(now) - _log_snr(before)) / 2
        return Step(state, image * (1 + extrapolation), previous_image=-image * extrapolation)


def posterior_std(now: Level, then: Level) -> float:
    """Return the standard deviation of q(z_then | z_now, x) (arXiv 2006.11239, eq. 7).

    Args:
        now: Level of the state.
        then: A level with less noise.

    Returns:
        Standard deviation; 0 for a clean end.
    """
    return then.noise / now.noise * math.sqrt(1 - (now.signal / then.signal) ** 2)


def _log_snr(level: Level) -> float:
    """Half the log-SNR lambda = log(signal / noise), minus infinity without signal."""
    return math.log(level.signal / level.noise) if level.signal else -math.inf
