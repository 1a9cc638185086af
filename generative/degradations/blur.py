"""Degradations by a linear filter with a kernel of its own for each image: Gaussian blur and motion blur.

Shape suffixes: K, L height and width of the kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from generative.degradations.base import Degradation, nothing_known
from generative.degradations.observation import Observation
from generative.degradations.severity import Severity, SeveritySpec
from generative.randomness import Randomness

GAUSSIAN_TRUNCATE = 4.0  # radius of the kernel in standard deviations, as in scipy.ndimage
MIN_SIGMA = 1e-3  # a kernel this narrow is the identity; avoids 0 / 0


class GaussianBlur(Degradation):
    """Convolves with an isotropic Gaussian; no pixel stays known."""

    def __init__(self, sigma: SeveritySpec) -> None:
        """Set the strength.

        Args:
            sigma: Standard deviation of the Gaussian in pixels, >= 0.
        """
        self.sigma = Severity(sigma, "GaussianBlur.sigma", minimum=0)

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        kernel_BK = self._kernel(self.sigma.sample(randomness, training), training)
        return _filter_both_ways(image_BCHW, kernel_BK), nothing_known(image_BCHW)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        kernel_1K = self._kernel(validity_B1HW.new_tensor([self.sigma.fixed(key)]), training=False)
        return Observation(lambda image_BCHW: _filter_both_ways(image_BCHW, kernel_1K))

    def _kernel(self, sigma_B: Tensor, training: bool) -> Tensor:
        radius = math.ceil(GAUSSIAN_TRUNCATE * self.sigma.highest(training))
        return gaussian_kernel(sigma_B[:, None].clamp(min=MIN_SIGMA), radius)


class MotionBlur(Degradation):
    """Averages along a straight line through each pixel; no pixel stays known."""

    def __init__(self, length: SeveritySpec, angle: SeveritySpec = (0.0, 180.0)) -> None:
        """Set the strength.

        Args:
            length: Length of the line in pixels, >= 1; 1 is the identity.
            angle: Direction of the line in degrees, counter-clockwise from the horizontal.
        """
        self.length = Severity(length, "MotionBlur.length", minimum=1)
        self.angle = Severity(angle, "MotionBlur.angle")

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        length_B = self.length.sample(randomness, training)
        angle_B = self.angle.sample(randomness, training)
        return filter_images(image_BCHW, self._kernel(length_B, angle_B, training)), nothing_known(image_BCHW)

    def observation(self, validity_B1HW: Tensor, key: str = "degradation") -> Observation:
        length_1, angle_1 = (validity_B1HW.new_tensor([each.fixed(key)]) for each in (self.length, self.angle))
        kernel_1KL = self._kernel(length_1, angle_1, training=False)
        return Observation(lambda image_BCHW: filter_images(image_BCHW, kernel_1KL))

    def _kernel(self, length_B: Tensor, angle_B: Tensor, training: bool) -> Tensor:
        return motion_kernel(length_B, angle_B, math.ceil((self.length.highest(training) - 1) / 2))


def gaussian_kernel(sigma_B1: Tensor, radius: int) -> Tensor:
    """Sample normalised Gaussians.

    Args:
        sigma_B1: (B, 1) standard deviations in pixels, > 0.
        radius: Half the size of the kernels.

    Returns:
        (B, K) kernels of size K = 2 radius + 1, each with sum 1.
    """
    offset_K = torch.arange(-radius, radius + 1, device=sigma_B1.device)
    weight_BK = torch.exp(-0.5 * (offset_K / sigma_B1) ** 2)
    return weight_BK / weight_BK.sum(dim=1, keepdim=True)


def motion_kernel(length_B: Tensor, angle_B: Tensor, radius: int) -> Tensor:
    """Draw normalised anti-aliased lines: a weight falls linearly to 0 at one pixel's distance from the line.

    Args:
        length_B: (B,) lengths in pixels, 1 to 2 radius + 1; a horizontal line of odd length is a box of that size.
        angle_B: (B,) directions in degrees, counter-clockwise from the horizontal.
        radius: Half the size of the kernels.

    Returns:
        (B, K, K) kernels of size K = 2 radius + 1, each with sum 1.
    """
    half_B11 = ((length_B - 1) / 2)[:, None, None]
    angle_B11 = torch.deg2rad(angle_B)[:, None, None]
    offset_K = torch.arange(-radius, radius + 1, device=length_B.device)
    x_1K, y_K1 = offset_K[None, :], -offset_K[:, None]  # rows count downwards
    along_BKK = x_1K * angle_B11.cos() + y_K1 * angle_B11.sin()
    across_BKK = y_K1 * angle_B11.cos() - x_1K * angle_B11.sin()
    beyond_BKK = (along_BKK.abs() - half_B11).clamp(min=0)
    weight_BKK = (1 - torch.hypot(across_BKK, beyond_BKK)).clamp(min=0)
    return weight_BKK / weight_BKK.sum(dim=(1, 2), keepdim=True)


def _filter_both_ways(image_BCHW: Tensor, kernel_BK: Tensor) -> Tensor:
    return filter_images(filter_images(image_BCHW, kernel_BK[:, :, None]), kernel_BK[:, None, :])


def filter_images(image_BCHW: Tensor, kernel_BKL: Tensor) -> Tensor:
    """Correlate each image with its own kernel, the image mirrored at its edges.

    A sum over shifted images: unlike a grouped convolution its rounding does not depend on the batch size, nor on TF32
    or autocast, and for the small kernels of this module it is as fast.

    Args:
        image_BCHW: (B, C, H, W) images of any size.
        kernel_BKL: (B, K, L) kernels, K and L odd.

    Returns:
        (B, C, H, W) filtered images.
    """
    height, width = image_BCHW.shape[-2:]
    kernel_BKL = kernel_BKL.to(image_BCHW.dtype)
    kernel_height, kernel_width = kernel_BKL.shape[1:]
    rows = _mirrored(height, kernel_height // 2, image_BCHW.device)
    columns = _mirrored(width, kernel_width // 2, image_BCHW.device)
    padded_BCHW = image_BCHW[:, :, rows][:, :, :, columns]
    filtered_BCHW = torch.zeros_like(image_BCHW)
    for i in range(kernel_height):
        for j in range(kernel_width):
            weight_B111 = kernel_BKL[:, i, j, None, None, None]
            filtered_BCHW.addcmul_(weight_B111, padded_BCHW[:, :, i : i + height, j : j + width])
    return filtered_BCHW


def _mirrored(extent: int, padding: int, device: torch.device) -> Tensor:
    """Return indices -padding..extent+padding folded back by half-sample symmetry (b a | a b c | c b), any extent."""
    position = torch.arange(-padding, extent + padding, device=device) % (2 * extent)
    return torch.minimum(position, 2 * extent - 1 - position)
