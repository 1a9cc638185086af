"""Restoration without training: denoisers that wrap the denoiser of any trained diffusion, and know what degraded the images.

A degraded image y = A x + n moves the estimate of the image: E[x | z, y] = E[x | z] + s^2 / a grad log p(y | z), z = a x + s e
(Tweedie's formula with Bayes' rule). The methods differ in p(y | z); RePaint moves the state instead. Every norm is that of one
image, so that no result depends on the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.degradations import Degradation, Observation
from generative.denoiser import Denoiser, Prediction
from generative.float32 import whole_float32
from generative.randomness import Randomness
from generative.ranges import Count, Positive
from generative.samplers.diffusion import Ancestral
from generative.schedules.noise import CLEAN, Level
from generative.types import Condition

BACKWARD_CALLS = 2  # network calls that a pass backwards through the network counts as
INNER_STEPS = 20  # of conjugate gradients on A A^T, which call no network
TINY = 1e-30


@dataclass(frozen=True)
class PosteriorGuidance(ABC):
    """Makes a diffusion of images restore degraded ones.

    Attributes:
        degradation: What degraded the images: linear with Gaussian noise.
        without_training: Says in a config that no network is shown the degraded image.
    """

    degradation: Degradation | None
    without_training: Literal[True] = True

    def __post_init__(self) -> None:
        if self.degradation is None:
            raise ValueError(
                f"guidance={type(self).__name__.lower()} restores degraded images, and there are none: set task=restore or "
                "task=inpaint and a linear degradation, such as degradation=holes."
            )
        self.check(self.degradation.observation(torch.ones(1, 1, 1, 1)))

    @property
    def described(self) -> str:
        """Name and settings, for the record; the degradation has a place of its own there."""
        shown = [
            f"{key}={value}" for key, value in vars(self).items() if key not in ("degradation", "without_training")
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    @abstractmethod
    def calls_per_step(self) -> int:
        """Network calls of a step of the sampler; a pass backwards counts as two."""

    @abstractmethod
    def moved(
        self, denoiser: Denoiser, task: Restoration, z: Tensor, timestep: int, condition: Condition
    ) -> Prediction:
        """Return what the denoiser knows of the states, and of the degraded images.

        Args:
            task: What is known of the degraded images.
            z: (B, C, H, W) states.
            timestep: Timestep of all rows.
        """

    def check(self, observation: Observation) -> None:
        """Check that the method can use an observation."""
        return

    def wrap(self, denoiser: Denoiser, degraded: Tensor, validity: Tensor, randomness: Randomness) -> Denoiser:
        """Return a denoiser whose estimates know of the degraded images.

        Args:
            denoiser: Denoiser of clean images.
            degraded: (B, C, H, W) degraded images.
            validity: (B, 1, H, W) validity maps.
            randomness: Source of further noise.

        Returns:
            A denoiser with the same contract; its predictions may be of states other than those that it is asked for.
        """
        assert self.degradation is not None
        with torch.inference_mode(False):  # gradients pass through the observation
            observation = self.degradation.observation(validity.clone())
            task = Restoration(observation, observation.seen(degraded.clone()), randomness)
        return _RestoringDenoiser(
            denoiser.network, denoiser.schedule, denoiser.output, plain=denoiser, guidance=self, task=task
        )


@dataclass(frozen=True)
class Restoration:
    """What is known of the degraded images of a batch.

    Attributes:
        seen: (B, C, H, W) degraded images, 0 in holes.
        randomness: Source of further noise, a stream for each image.
    """

    observation: Observation
    seen: Tensor
    randomness: Randomness


@dataclass(frozen=True)
class _RestoringDenoiser(Denoiser):
    plain: Denoiser = field(kw_only=True)
    guidance: PosteriorGuidance = field(kw_only=True)
    task: Restoration = field(kw_only=True)

    def predict(self, z_BCHW: Tensor, timestep: Tensor | int, condition: Condition) -> Prediction:
        if not isinstance(timestep, int):
            raise TypeError("Guidance by a degraded image is for samplers, whose rows have one timestep.")
        return self.guidance.moved(self.plain, self.task, z_BCHW, timestep, condition)


Pull = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Linearised:
    """An estimate of the image and how it moves with the state.

    Attributes:
        missed: (B, C, H, W) y - A x^ of the estimate x^.
        pull: v -> (d x^/d z)^T v, a pass backwards.
        level: Factors of image and noise in the states.
        cleaner: Those one timestep before, with less noise.
    """

    missed: Tensor
    pull: Pull
    level: Level
    cleaner: Level


@dataclass(frozen=True)
class _ByGradient(PosteriorGuidance):
    """Moves the estimate of the image by gradients through the network."""

    @abstractmethod
    def step(self, at: Linearised, observation: Observation) -> Tensor:
        """Return by how much the estimate moves, (B, C, H, W)."""

    def moved(
        self, denoiser: Denoiser, task: Restoration, z: Tensor, timestep: int, condition: Condition
    ) -> Prediction:
        level = denoiser.schedule.level(timestep)
        if level.signal == 0:  # pure noise says nothing of the image, which no gradient could change
            return denoiser.predict(z, timestep, condition)
        with whole_float32(z.device):  # conjugate gradients of rounded products need not lead anywhere
            with torch.inference_mode(False), torch.enable_grad():  # samplers run without gradients
                start = z.detach().clone().requires_grad_()
                told = Condition(*(part if part is None else part.clone() for part in vars(condition).values()))
                estimate = denoiser.predict(start, timestep, told).image

            def pull(vector: Tensor) -> Tensor:
                with torch.inference_mode(False):
                    return torch.autograd.grad(estimate, start, vector.clone(), retain_graph=True)[0]

            image = estimate.detach()
            missed = task.seen - task.observation.operator(image)
            at = Linearised(missed, pull, level, denoiser.schedule.level(timestep - 1) if timestep else CLEAN)
            image = image + self.step(at, task.observation)
        return Prediction(z, image, "image", level.signal, level.noise)


@checked("guidance")
@dataclass(frozen=True)
class MMPS(_ByGradient):
    """Moment matching (Rozet et al. 2024, arXiv 2405.13712): p(y | z) = N(A E[x | z], A V A^T + S), V = s^2 / a dE[x | z] / dz.

    Exact where the data are Gaussian and the linear system is solved to its end.

    Attributes:
        inner_steps: Steps of conjugate gradients on that system, a pass backwards each.
    """

    inner_steps: Count = 3

    @property
    def calls_per_step(self) -> int:
        return 1 + BACKWARD_CALLS * (self.inner_steps + 1)

    def step(self, at: Linearised, observation: Observation) -> Tensor:
        def covariance(vector: Tensor) -> Tensor:
            return at.level.noise**2 / at.level.signal * at.pull(vector)

        def of_degraded(vector: Tensor) -> Tensor:
            return observation.noise_covariance(vector) + observation.operator(covariance(observation.adjoint(vector)))

        solved = conjugate_gradients(of_degraded, at.missed, self.inner_steps)
        return covariance(observation.adjoint(solved))


@checked("guidance")
@dataclass(frozen=True)
class PiGDM(_ByGradient):
    """Pseudoinverse guidance (Song et al. 2023, ICLR): p(y | z) = N(A E[x | z], r^2 A A^T + S), with r^2 of all pixels alike.

    Attributes:
        data_std: Standard deviation d of the data, in units of images in [-1, 1]: r^2 = s^2 d^2 / (a^2 d^2 + s^2).
    """

    data_std: Positive = 0.5

    @property
    def calls_per_step(self) -> int:
        return 1 + BACKWARD_CALLS

    def step(self, at: Linearised, observation: Observation) -> Tensor:
        noise, signal = at.level.noise**2, at.level.signal**2
        variance = noise * self.data_std**2 / (signal * self.data_std**2 + noise)

        def of_degraded(vector: Tensor) -> Tensor:
            spread = observation.operator(observation.adjoint(vector))
            return observation.noise_covariance(vector) + variance * spread

        solved = conjugate_gradients(of_degraded, at.missed, INNER_STEPS)
        return noise / at.level.signal * at.pull(observation.adjoint(solved))


@checked("guidance")
@dataclass(frozen=True)
class DPS(_ByGradient):
    """Diffusion posterior sampling (Chung et al. 2023, arXiv 2209.14687): states move down the gradient of |y - A E[x | z]|.

    The published step is one of the state at each of the T timesteps (algorithm 1). Here the estimate moves, by that step over
    the estimate's factor in it, so that a sampler of fewer steps is guided as much in all.

    Attributes:
        strength: zeta of the paper.
    """

    strength: Positive = 1.0

    @property
    def calls_per_step(self) -> int:
        return 1 + BACKWARD_CALLS

    def step(self, at: Linearised, observation: Observation) -> Tensor:
        length = _dot(at.missed, at.missed).sqrt().clamp(min=TINY)
        moves = Ancestral().step(None, at.level, at.cleaner).image
        return self.strength / moves * at.pull(observation.adjoint(at.missed / length))


@checked("guidance")
@dataclass(frozen=True)
class RePaint(PosteriorGuidance):
    """RePaint (Lugmayr et al. 2022, arXiv 2201.09865): known pixels are put into each state, noised, which is drawn again.

    Attributes:
        rounds: How often each state meets the known pixels and the network.
        jump: Timesteps that a state goes back and forth between the rounds.
    """

    rounds: Count = 10
    jump: Count = 10

    def check(self, observation: Observation) -> None:
        if observation.shown is None:
            raise ValueError(
                "guidance=repaint knows of holes alone: choose degradation=holes, block_mask or brush_mask, or guidance=mmps."
            )

    @property
    def calls_per_step(self) -> int:
        return self.rounds

    def moved(
        self, denoiser: Denoiser, task: Restoration, z: Tensor, timestep: int, condition: Condition
    ) -> Prediction:
        assert task.observation.shown is not None
        known, shape, normal = task.observation.shown > 0, z.shape[1:], task.randomness.normal
        level = denoiser.schedule.level(timestep)
        cleaner = denoiser.schedule.level(timestep - self.jump) if timestep >= self.jump else CLEAN
        ratio, factors = level.signal / cleaner.signal, Ancestral().step(None, level, cleaner)
        image = z
        for number in range(self.rounds):
            if number:
                z = factors.state * z + factors.image * image + factors.noise * normal(*shape)
                z = ratio * z + (1 - ratio**2) ** 0.5 * normal(*shape)
            z = torch.where(known, level.signal * task.seen + level.noise * normal(*shape), z)
            image = torch.where(known, task.seen, denoiser.predict(z, timestep, condition).image)
        return Prediction(z, image, "image", level.signal, level.noise)


def conjugate_gradients(matrix: Callable[[Tensor], Tensor], right: Tensor, num_steps: int) -> Tensor:
    """Solve a symmetric positive system for each image.

    The Jacobian of a network need not be such a matrix: an image whose next direction has no positive curvature, in which the
    step would be without bound, keeps the solution that it has come to.

    Args:
        matrix: Applies it to (B, C, H, W) vectors, one for each image.
        right: (B, C, H, W) right sides.

    Returns:
        (B, C, H, W) solutions after so many steps from 0.
    """
    solution, residual, direction, squared = torch.zeros_like(right), right, right, _dot(right, right)
    goes_on = torch.ones_like(squared, dtype=torch.bool)
    for _ in range(num_steps):
        mapped = matrix(direction)
        curvature = _dot(direction, mapped)
        goes_on = goes_on & (curvature > 0)
        length = torch.where(goes_on, squared / curvature.clamp(min=TINY), 0)
        solution, residual = solution + length * direction, residual - length * mapped
        before, squared = squared, _dot(residual, residual)
        direction = residual + squared / before.clamp(min=TINY) * direction
    return solution


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(1, 2, 3), keepdim=True)
