"""Degradation of super-resolution: fewer pixels, enlarged to the old size."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from files.pixels import from_levels, to_levels
from generative.checks import checked
from generative.degradations.base import Degradation, nothing_known
from generative.degradations.observation import Observation
from generative.randomness import Randomness
from generative.ranges import Count


@checked("Downsample")
class Downsample(Degradation):
    """Makes an image smaller and enlarges it to the old size; no pixel stays known."""

    def __init__(
        self,
        factor: Count,
        upsampling: Literal["bicubic", "nearest"] = "bicubic",
        kernel: Literal["box", "bicubic"] = "box",
        rounded: bool = False,
    ) -> None:
        """Set the strength.

        Args:
            factor: Ratio of the sides; sizes that it does not divide are extended at the right and
                bottom edges and cropped again.
            upsampling: How the small image is enlarged, ``"bicubic"`` or ``"nearest"``.
            kernel: How it is made. ``"box"`` averages factor x factor pixels; a bicubic enlargement then has a = -0.75, as
                PyTorch's and OpenCV's. ``"bicubic"`` is the kernel of papers on super-resolution, a = -0.5, widened by the
                factor against aliasing, and so of the enlargement: as MATLAB's imresize and Pillow have it, but that MATLAB
                mirrors the image at its border where Pillow, and this, cut the kernel off.
            rounded: Whether the small image has 8 bits, as a file of it.
        """
        self.factor = factor
        self.upsampling = upsampling
        self.kernel = kernel
        self.rounded = rounded

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        return self._resampled(image_BCHW), nothing_known(image_BCHW)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        return super().observation(validity_B1HW, key) if self.rounded else Observation(self._resampled)

    def _resampled(self, image_BCHW: Tensor) -> Tensor:
        height, width = image_BCHW.shape[-2:]
        small_BChw = self._small(pad_to_multiple(image_BCHW, self.factor))
        if self.rounded:
            small_BChw = from_levels(to_levels(small_BChw.clamp(-1, 1)))
        # Antialiasing changes nothing of an enlargement but PyTorch's a.
        smooth = self.kernel == "bicubic" and self.upsampling == "bicubic"
        large_BCHW = F.interpolate(small_BChw, scale_factor=self.factor, mode=self.upsampling, antialias=smooth)
        return large_BCHW[:, :, :height, :width]

    def _small(self, image_BCHW: Tensor) -> Tensor:
        if self.kernel == "box":
            return F.avg_pool2d(image_BCHW, self.factor)
        size = [side // self.factor for side in image_BCHW.shape[-2:]]
        return F.interpolate(image_BCHW, size, mode="bicubic", antialias=True)


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
