"""A small restoration whose exact answer is known, on which a solver is judged by itself, whatever its run was trained on."""

from __future__ import annotations

import torch

from generative.degradations import BlockMask, Degradation
from generative.truth.priors import GaussianField
from generative.types import Batch

FIELD = GaussianField(8)
HOLE = 4  # side in pixels of the hole in the middle, where the posterior is 0.7 times as wide as the data
WORDS = "a hole of 4x4 pixels in 8x8 Gaussian fields"


def reference_problem(num_images: int, device: torch.device | str = "cpu") -> tuple[Batch, Degradation]:
    """Return fields with a hole in the middle, the same in every call.

    Returns:
        The batch, and what degraded it.
    """
    image = FIELD.draw(torch.Generator().manual_seed(0), num_images).float()
    validity = torch.ones(num_images, 1, FIELD.image_size, FIELD.image_size)
    border = (FIELD.image_size - HOLE) // 2
    validity[..., border:-border, border:-border] = 0
    tensors = (image, torch.arange(num_images), image * validity, validity)
    image, index, degraded, validity = (tensor.to(device) for tensor in tensors)
    return Batch(image, index, degraded=degraded, validity=validity), BlockMask(HOLE)
