"""Laws that images are drawn from: stationary Gaussian fields, and discs on them.

Shape suffixes: S side of the image, P = S S pixels, M modes, N images, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from generative.checks import checked
from generative.ranges import Channels, Count, Positive, Share
from generative.truth.law import GaussianMixture, choose_modes

LARGEST_SIZE = 64  # side in pixels up to which a covariance of all pixels is written out: 134 MB
ROUNDING_VARIANCE = (2 / 255) ** 2 / 12  # of images of 8 bits


@checked("data.prior")
@dataclass(frozen=True)
class GaussianField:
    """A Gaussian field of mean 0 (mid-grey), each channel by itself, with the covariance std^2 k(rows apart) k(columns apart).

    k is the Matern correlation of half-integer smoothness: exp(-d), (1 + d) exp(-d) or (1 + d + d^2/3) exp(-d), d the distance
    over the correlation length, times the root of twice the half-integer. Products of two are stationary too, and drawn
    exactly at any size. A range of four standard deviations must fit into [-1, 1], where images end.

    Attributes:
        image_size: Side S of the images in pixels.
        channels: 1 for grey, 3 for RGB.
        std: Standard deviation of a pixel.
        correlation_length: Length as a share of the side.
        smoothness: How often the field has a derivative; that of Matern is a half more.
    """

    image_size: Count
    channels: Channels = 1
    std: Positive = 0.25
    correlation_length: Positive = 0.2
    smoothness: Literal[0, 1, 2] = 1

    def __post_init__(self) -> None:
        if self._largest_level + 4 * self.std > 1:
            raise ValueError(
                f"data.prior.std={self.std:g} reaches beyond black and white, where images are cut off and their law is not "
                f"known any more: set it to {(1 - self._largest_level) / 4:g} at most."
            )

    @property
    def _largest_level(self) -> float:
        return 0.0

    @property
    def modes_MSS(self) -> Tensor:
        """(M, S, S) mean images of modes that are equally likely, the same in all channels."""
        return torch.zeros(1, self.image_size, self.image_size, dtype=torch.float64)

    @cached_property
    def correlation_SS(self) -> Tensor:
        """(S, S) float64 correlations of pixels in one line."""
        pixel_S = torch.arange(self.image_size, dtype=torch.float64)
        apart_SS = (pixel_S[:, None] - pixel_S).abs() / (self.correlation_length * self.image_size)
        d_SS = apart_SS * (2 * self.smoothness + 1) ** 0.5
        polynomials = (torch.ones_like(d_SS), 1 + d_SS, 1 + d_SS + d_SS.square() / 3)
        return polynomials[self.smoothness] * (-d_SS).exp()

    @cached_property
    def law(self) -> GaussianMixture:
        """The law of the images as they are stored, with the variance of their rounding to 8 bits.

        Raises:
            ValueError: The images are too large for it.
        """
        if self.image_size > LARGEST_SIZE:
            raise ValueError(
                f"data.image_size={self.image_size} is too large for an exact posterior, which needs the covariance of all "
                f"pixels: set data.image_size={LARGEST_SIZE} at most."
            )
        modes_MP = self.modes_MSS.flatten(1)
        covariance_PP = self.std**2 * torch.kron(self.correlation_SS, self.correlation_SS)
        covariance_PP.diagonal().add_(ROUNDING_VARIANCE)
        return GaussianMixture(
            torch.zeros(1, len(modes_MP), dtype=torch.float64),
            modes_MP[None, :, None].expand(-1, -1, self.channels, -1),
            covariance_PP,
        )

    def draw(self, generator: torch.Generator, num_images: int) -> Tensor:
        """Draw images of any size, exactly.

        Returns:
            (N, C, S, S) float64 images, nearly all in [-1, 1].
        """
        modes_MSS = self.modes_MSS
        uniform_N = torch.rand(num_images, generator=generator, dtype=torch.float64)
        mode_N = choose_modes(torch.full((num_images, len(modes_MSS)), 1 / len(modes_MSS)).double(), uniform_N)
        shape = (num_images, self.channels, self.image_size, self.image_size)
        noise_NCSS = torch.randn(shape, generator=generator, dtype=torch.float64)
        root_SS = torch.linalg.cholesky(self.correlation_SS)
        return modes_MSS[mode_N][:, None] + self.std * (root_SS @ noise_NCSS @ root_SS.T)


@checked("data.prior")
@dataclass(frozen=True)
class DiscOnField(GaussianField):
    """A bright or dark disc in the middle of one of the four quarters of the image, all eight alike, on a Gaussian field.

    Attributes:
        std: Standard deviation of a pixel around its mode.
        level: Distance of the disc from mid-grey.
        radius: Radius of the disc as a share of the side.
    """

    std: Positive = 0.1
    level: Share = 0.5
    radius: Share = 0.12

    @property
    def _largest_level(self) -> float:
        return self.level

    @property
    def modes_MSS(self) -> Tensor:
        pixel_S = (torch.arange(self.image_size, dtype=torch.float64) + 0.5) / self.image_size
        discs = []
        for row in (0.25, 0.75):
            for column in (0.25, 0.75):
                distance_SS = torch.hypot(pixel_S[:, None] - row, pixel_S - column)
                disc_SS = ((self.radius - distance_SS) * self.image_size + 0.5).clamp(0, 1)  # share of the pixel
                discs += [self.level * disc_SS, -self.level * disc_SS]
        return torch.stack(discs)
