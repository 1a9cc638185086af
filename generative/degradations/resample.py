"""Degradation of super-resolution: fewer pixels, enlarged to the old size."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from generative.checks import checked
from generative.degradations.base import Degradation, nothing_known
from generative.degradations.observation import Observation
from generative.randomness import Randomness
from generative.ranges import Count


@checked("Downsample")
class Downsample(Degradation):
    """Averages blocks of factor x factor pixels and interpolates back to the old size; no pixel stays known."""

    def __init__(self, factor: Count, upsampling: Literal["bicubic", "nearest"] = "bicubic") -> None:
        """Set the strength.

        Args:
            factor: Ratio of the sides; sizes that it does not divide are extended at the right and
                bottom edges and cropped again.
            upsampling: How the small image is enlarged, ``"bicubic"`` or ``"nearest"``.
        """
        self.factor = factor
        self.upsampling = upsampling

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        return self._resampled(image_BCHW), nothing_known(image_BCHW)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        return Observation(self._resampled)

    def _resampled(self, image_BCHW: Tensor) -> Tensor:
        small_BChw = F.avg_pool2d(pad_to_multiple(image_BCHW, self.factor), self.factor)
        large_BCHW = F.interpolate(small_BChw, scale_factor=self.factor, mode=self.upsampling)
        height, width = image_BCHW.shape[-2:]
        return large_BCHW[:, :, :height, :width]


def pad_to_multiple(image_BCHW: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until a number divides both sides.

    Args:
        image_BCHW: (B, C, H, W) images.
        multiple: What is to divide the sides.

    Returns:
        (B, C, H', W') images with the smallest such H' >= H and W' >= W.
    """
    height, width = image_BCHW.shape[-2:]
    return F.pad(image_BCHW, (0, -width % multiple, 0, -height % multiple), mode="replicate")
