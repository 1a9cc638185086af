"""Degradations made of named steps: one after the other, or one of several per image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from generative.degradations.base import Degradation
from generative.randomness import Randomness


class _Steps(Degradation):
    """Degradations made of steps."""

    steps: dict[str, Degradation]

    def check_images(self, image_size: int, key: str = "degradation") -> None:
        for name, step in self.steps.items():
            step.check_images(image_size, f"{key}.steps.{name}")


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

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        validity_B1HW = image_BCHW.new_ones(len(image_BCHW), 1, *image_BCHW.shape[-2:])
        for step in self.steps.values():
            degraded = step(image_BCHW, randomness, training)
            image_BCHW, validity_B1HW = degraded.image, validity_B1HW * degraded.validity
        return image_BCHW, validity_B1HW


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

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        boundaries = torch.tensor(self._boundaries, device=image_BCHW.device)
        choice_B = torch.bucketize(randomness.uniform(), boundaries, right=True)
        degraded_BCHW = torch.empty_like(image_BCHW, memory_format=torch.contiguous_format)
        validity_B1HW = image_BCHW.new_empty(len(image_BCHW), 1, *image_BCHW.shape[-2:])
        for number, step in enumerate(self.steps.values()):
            rows = (choice_B == number).nonzero().squeeze(1)
            if len(rows) > 0:
                degraded = step(image_BCHW[rows], randomness.select(rows), training)
                degraded_BCHW[rows], validity_B1HW[rows] = degraded.image, degraded.validity
        return degraded_BCHW, validity_B1HW


def _without_none(steps: Mapping[str, Degradation | None]) -> dict[str, Degradation]:
    return {name: step for name, step in steps.items() if step is not None}
