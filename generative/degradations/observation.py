"""What a linear degradation with Gaussian noise is: y = A x + n, for exact posteriors and restoration without training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]
# Degraded images are float32: a deviation of a few of its last digits keeps every covariance of them invertible.
ROUNDING_STD = 1e-6


def _same(image_BCHW: Tensor) -> Tensor:
    return image_BCHW


@dataclass(frozen=True)
class Observation:
    """A linear map of images and the Gaussian noise that is added, the same for all rows but for what is shown.

    Attributes:
        operator: A: (B, C, H, W) -> (B, C, H, W) in any float dtype, each channel by itself.
        noises: Linear maps of independent white noise, each to its part of the noise.
        shown: (B or 1, 1, H, W) map of what the degraded image shows at all, 0 in holes; None: everywhere.
    """

    operator: LinearMap = _same
    noises: tuple[LinearMap, ...] = ()
    shown: Tensor | None = None

    @classmethod
    def of_known_pixels(cls, validity_B1HW: Tensor) -> Observation:
        """Return the observation of pixels at known places, without noise."""

        def masked(image_BCHW: Tensor) -> Tensor:
            return image_BCHW * validity_B1HW.to(image_BCHW.dtype)

        return cls(masked, shown=validity_B1HW)

    def followed_by(self, other: Observation) -> Observation:
        """Return the observation of another degradation after this one, which maps this one's noise too."""

        def after(first: LinearMap) -> LinearMap:
            return lambda image_BCHW: other.operator(first(image_BCHW))

        return Observation(after(self.operator), (*map(after, self.noises), *other.noises))

    def plus_noise(self, std: float) -> Observation:
        """Return the observation with white noise of a standard deviation on top."""
        return replace(self, noises=(*self.noises, lambda noise_BCHW: std * noise_BCHW)) if std else self

    def seen(self, degraded_BCHW: Tensor) -> Tensor:
        """Return the degraded images without what says nothing of the clean ones: 0 in holes, as A x is there."""
        return degraded_BCHW if self.shown is None else degraded_BCHW * self.shown.to(degraded_BCHW.dtype)

    def adjoint(self, image_BCHW: Tensor) -> Tensor:
        """Apply the transpose of A."""
        return _transposed(self.operator, image_BCHW)

    def noise_covariance(self, image_BCHW: Tensor) -> Tensor:
        """Apply the covariance of the noise, with that of the rounding of degraded images."""
        parts = [noise(_transposed(noise, image_BCHW)) for noise in self.noises]
        return sum(parts, ROUNDING_STD**2 * image_BCHW)

    def matrices(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Write one row's map out for a channel of P = H W pixels in row-major order.

        Returns:
            A and the covariance of the noise, (P, P) float64 each.
        """
        unit_P1HW = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
        covariance_PP = ROUNDING_STD**2 * torch.eye(height * width, dtype=torch.float64)
        for noise in self.noises:
            root_PP = noise(unit_P1HW).flatten(1).T
            covariance_PP = covariance_PP + root_PP @ root_PP.T
        return self.operator(unit_P1HW).flatten(1).T.contiguous(), covariance_PP


def _transposed(linear: LinearMap, image_BCHW: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        start = torch.zeros_like(image_BCHW).requires_grad_()
        (transposed,) = torch.autograd.grad(linear(start), start, image_BCHW.detach().clone())
    return transposed
