"""The plain containers that travel between the packages.

Shape suffixes used throughout: B batch, C channels, H height, W width, T network times, K condition channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


@dataclass
class Batch:
    """A batch of images and what is known about them.

    Attributes:
        image: (B, C, H, W) float images in [-1, 1].
        index: (B,) int64 indices within the data split; validation and test draws depend on nothing else.
        step: Index of the batch in the endless training stream; training draws are a function of it.
        labels: (B, L) multi-hot labels, or None.
        degraded: (B, C, H, W) float images in [-1, 1] that a restorer sees, or None.
        validity: (B, 1, H, W) float map, 1 where the degraded pixel is known exactly, 0 elsewhere, or None.
        encoded: What a frozen autoencoder makes of the images: (B, N) int64 tokens or (B, D, G, G) latents; None without one.
        kind: (B,) int64 numbers of what befell the images among the ``kinds`` of the degradation, or None without kinds.
    """

    image: Tensor
    index: Tensor
    step: int = 0
    labels: Tensor | None = None
    degraded: Tensor | None = None
    validity: Tensor | None = None
    encoded: Tensor | None = None
    kind: Tensor | None = None

    def observed(self) -> tuple[Tensor, Tensor]:
        """Return what a restorer sees.

        Returns:
            Degraded images (B, C, H, W) and validity maps (B, 1, H, W).

        Raises:
            ValueError: The batch has not been degraded.
        """
        if self.degraded is None or self.validity is None:
            raise ValueError("A restorer needs degraded images: choose a degradation, such as degradation=mixed.")
        return self.degraded, self.validity

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """Return a batch whose tensors are changed, each by itself."""
        changed: dict[str, Any] = {key: change(x) for key, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **changed)

    def select(self, rows: Tensor) -> Batch:
        """Return some rows of the batch.

        Args:
            rows: (M,) int64 row numbers.

        Returns:
            A batch of size M of the same step.
        """
        return self.map(lambda tensor: tensor[rows])


class Degraded(NamedTuple):
    """What a degradation returns.

    Attributes:
        image: (B, C, H, W) float images in [-1, 1].
        validity: (B, 1, H, W) float map: 1 where the pixel equals the clean one with certainty, 0 elsewhere.
        kind: (B,) int64 numbers of what befell the images among the ``kinds`` of the degradation, or None without kinds.
    """

    image: Tensor
    validity: Tensor
    kind: Tensor | None = None


@dataclass(frozen=True)
class Condition:
    """What a network is told besides its noisy input.

    Attributes:
        image: (B, K, H, W) maps concatenated to the network's input (degraded image in [-1, 1], validity in [0, 1]), or None.
        labels: (B, L) multi-hot labels of 0 and 1, or None.
        guidance: (B,) shares 1 - 1/w in [0, 1) of the scale w of a guidance that the network has learnt, or None for 0.
    """

    image: Tensor | None = None
    labels: Tensor | None = None
    guidance: Tensor | None = None

    def select(self, rows: Tensor) -> Condition:
        """Return the condition of some rows of the batch.

        Args:
            rows: (M,) int64 row numbers.

        Returns:
            The condition with batch size M.
        """
        parts = (self.image, self.labels, self.guidance)
        return Condition(*(None if part is None else part[rows] for part in parts))


def restoration_condition(degraded_BCHW: Tensor, validity_B1HW: Tensor) -> Condition:
    """Stack the degraded image and its validity map as the condition of a restorer.

    Args:
        degraded_BCHW: (B, C, H, W) degraded images in [-1, 1].
        validity_B1HW: (B, 1, H, W) validity maps in {0, 1}.

    Returns:
        A condition whose image has K = C + 1 channels.
    """
    return Condition(image=torch.cat([degraded_BCHW, validity_B1HW], dim=1))


@dataclass
class LossOutput:
    """The scalar to minimise and what to log with it.

    Attributes:
        loss: () differentiable loss.
        logs: Detached scalars by name.
        weight: () number of terms, of the average rank, that the loss is the mean of, where it differs from batch to batch:
            accumulated batches count in proportion to it. None where all batches count alike.
    """

    loss: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None


class State(NamedTuple):
    """Where a sampler stands after a step.

    Attributes:
        z: (B, C, H, W) state; after the last step the sampled image.
        image: (B, C, H, W) estimate of the image that the step went by.
        unknown: (B, 1, H, W) bool, true in pixels of which nothing was decided before the step; None without such a map.
    """

    z: Tensor
    image: Tensor
    unknown: Tensor | None = None
