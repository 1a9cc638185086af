"""Degradations made of named steps: one after the other, or one of several per image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate, product

import torch
from torch import Tensor

from generative.degradations.base import Degradation
from generative.degradations.observation import Observation
from generative.randomness import Randomness
from generative.types import Degraded


class _Steps(Degradation):
    """Degradations made of steps."""

    steps: dict[str, Degradation]

    def check_images(self, image_size: int, channels: int, key: str = "degradation") -> None:
        for name, step in self.steps.items():
            step.check_images(image_size, channels, f"{key}.steps.{name}")

    @property
    def clips(self) -> bool:
        return any(step.clips for step in self.steps.values())

    @property
    def told_by_validity(self) -> bool:
        return all(step.told_by_validity for step in self.steps.values())

    def _observations(self, validity_B1HW: Tensor, key: str) -> list[Observation]:
        return [step.observation(validity_B1HW, f"{key}.steps.{name}") for name, step in self.steps.items()]


class Sequential(_Steps):
    """Applies the steps in order; a pixel stays known if every step leaves it known."""

    def __init__(self, steps: Mapping[str, Degradation | None]) -> None:
        """Name the steps.

        Args:
            steps: Steps by name; the names are the handles of overrides such as ``degradation.steps.noise.std=0.5``. A
                step that is None is left out.

        Raises:
            ValueError: If there is no step.
        """
        self.steps = _without_none(steps)
        if not self.steps:
            raise ValueError("Sequential.steps: at least one step is needed.")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every combination of the steps' kinds, such as ``noise+block``."""
        several = [step.kinds for step in self.steps.values() if step.kinds]
        return tuple(map("+".join, product(*several))) if several else ()

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> Degraded:
        validity_B1HW = image_BCHW.new_ones(len(image_BCHW), 1, *image_BCHW.shape[-2:])
        kind_B = None
        for step in self.steps.values():
            degraded = step(image_BCHW, randomness, training)
            image_BCHW, validity_B1HW = degraded.image, validity_B1HW * degraded.validity
            if degraded.kind is not None:
                kind_B = degraded.kind if kind_B is None else kind_B * len(step.kinds) + degraded.kind
        return Degraded(image_BCHW, validity_B1HW, kind_B)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        if self.told_by_validity:
            return Observation.of_known_pixels(validity_B1HW)
        holes = [name for name, step in self.steps.items() if step.told_by_validity]
        if holes:  # after another step no pixel is known exactly, and the validity map is 0 everywhere
            raise ValueError(
                f"{key}.steps.{holes[0]}: beside other steps no validity map tells where the hole is, which the exact "
                f"posterior and guidance without training need: leave it out with ~{key}.steps.{holes[0]}, or the others."
            )
        observation = Observation()
        for step in self._observations(validity_B1HW, key):
            observation = observation.followed_by(step)
        return observation


class Mixture(_Steps):
    """Applies exactly one of the steps to each image, chosen at random per image."""

    def __init__(self, steps: Mapping[str, Degradation | None], weights: Mapping[str, float] | None = None) -> None:
        """Name the steps.

        Args:
            steps: Steps by name, as for ``Sequential``.
            weights: Relative frequency of steps by name, >= 0; 1 for those not named.

        Raises:
            ValueError: If there is no step, or if a weight belongs to no step, is negative or leaves nothing to choose.
        """
        weights = weights or {}
        self.steps = _without_none(steps)
        if not self.steps:
            raise ValueError("Mixture.steps: at least one step is needed.")
        if unknown := sorted(set(weights) - set(steps)):
            raise ValueError(f"Mixture.weights: {', '.join(unknown)} is not among the steps {', '.join(steps)}.")
        self.weights = {name: float(weights.get(name, 1)) for name in self.steps}
        total = sum(self.weights.values())
        if min(self.weights.values()) < 0 or not 0 < total < math.inf:
            raise ValueError(f"Mixture.weights: must be >= 0 with a positive sum, got {self.weights}.")
        self._boundaries = [weight / total for weight in accumulate(self.weights.values())][:-1]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the steps; of a step that has kinds itself ``step.kind``."""
        return tuple(
            f"{name}.{kind}" if kind else name for name, step in self.steps.items() for kind in step.kinds or [""]
        )

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> Degraded:
        boundaries = torch.tensor(self._boundaries, device=image_BCHW.device)
        choice_B = torch.bucketize(randomness.uniform(), boundaries, right=True)
        degraded_BCHW = torch.empty_like(image_BCHW, memory_format=torch.contiguous_format)
        validity_B1HW = image_BCHW.new_empty(len(image_BCHW), 1, *image_BCHW.shape[-2:])
        kind_B, first_kind = torch.zeros_like(choice_B), 0
        # Rows by step, with all their numbers at once: each look at a number waits for a GPU.
        numbers = torch.arange(len(self.steps), device=choice_B.device)
        counts = (choice_B[:, None] == numbers).sum(0).tolist()
        parts = choice_B.argsort(stable=True).split(counts)
        for step, rows in zip(self.steps.values(), parts, strict=True):
            if len(rows) > 0:
                degraded = step(image_BCHW[rows], randomness.select(rows), training)
                degraded_BCHW[rows], validity_B1HW[rows] = degraded.image, degraded.validity
                kind_B[rows] = first_kind if degraded.kind is None else first_kind + degraded.kind
            first_kind += len(step.kinds) or 1
        return Degraded(degraded_BCHW, validity_B1HW, kind_B)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        """One step of several is told by the validity map only where all of them are holes."""
        likely = {name: step for name, step in self.steps.items() if self.weights[name]}
        observations = self._observations(validity_B1HW, key)
        if len(likely) > 1 and not self.told_by_validity:
            raise ValueError(
                f"{key}.steps={', '.join(likely)}: no restorer is told which of them befell an image, which the exact "
                "posterior and guidance without training need: leave one, or steps that make holes alone."
            )
        return observations[list(self.steps).index(next(iter(likely)))]


def _without_none(steps: Mapping[str, Degradation | None]) -> dict[str, Degradation]:
    return {name: step for name, step in steps.items() if step is not None}
