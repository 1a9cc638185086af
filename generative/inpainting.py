"""Between pixels and tokens: which tokens a hole makes unknown, and how known and decoded pixels become one picture.

An encoder sees beyond a token's own patch, so the fill of a hole leaks into the tokens around it. How far is measured by
``receptive_radius``; a hole that is widened by so many tokens leaves no token known that the fill could change.

Shape legend: B batch, C channels, H/W height and width in pixels, G side of the token grid, N = G G tokens in row-major
order, D latent channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.denoiser import Denoiser, Prediction
from generative.flow_map import FlowMap, per_image
from generative.types import Condition


def token_mask(validity_B1HW: Tensor, grid_size: int, dilation: int = 0) -> Tensor:
    """Find the tokens that a hole makes unknown.

    Args:
        validity_B1HW: (B, 1, H, W) validity maps, 1 where a pixel is known exactly.
        grid_size: Side G of the token grid, a divisor of H and W.
        dilation: By how many tokens the hole is widened in all eight directions.

    Returns:
        (B, N) bool map, true for tokens with a pixel that is not known in their patch or in one of the patches around it.

    Raises:
        ValueError: The grid does not divide the image.
    """
    height, width = validity_B1HW.shape[-2:]
    if height % grid_size or width % grid_size:
        raise ValueError(
            f"data.image_size: images of {height}x{width} pixels do not divide into a token grid of {grid_size}x{grid_size}: "
            "use the image size of the tokenizer."
        )
    hole_B1HW = _hole(validity_B1HW).to(torch.float32)
    unknown_B1GG = F.max_pool2d(hole_B1HW, (height // grid_size, width // grid_size))
    unknown_B1GG = F.max_pool2d(unknown_B1GG, 2 * dilation + 1, stride=1, padding=dilation)
    return unknown_B1GG.flatten(1) > 0


@torch.no_grad()
def receptive_radius(encode: Callable[[Tensor], Tensor], image_size: int, channels: int, grid_size: int) -> int:
    """Measure how far around its own patch the encoding of a token looks.

    One row of patches after another, then one column, is filled with NaN, which spreads to all that depends on it, also over
    weights that are zero. A row of patches reaches as far up and down as the farthest of its patches, so that 2 G images
    tell exactly what probing the G^2 patches one by one would, whatever the network does at the borders.

    Args:
        encode: ``encode(image_BCHW) -> z_BDGG`` on the CPU, in evaluation mode; the fast convolutions of GPUs may spread NaN
            further than the values depend on each other.
        image_size: Side of the images in pixels, a multiple of G.
        channels: Number of channels C of the images.
        grid_size: Side G of the token grid.

    Returns:
        The largest distance, in tokens along the rows or columns, between a patch and a token that depends on it.
    """
    patch_size = image_size // grid_size
    position_G = torch.arange(grid_size)
    radius = 0
    for axis in (2, 3):
        for line in range(grid_size):
            image_1CHW = torch.zeros(1, channels, image_size, image_size)
            image_1CHW.narrow(axis, line * patch_size, patch_size).fill_(math.nan)
            reached_GG = encode(image_1CHW)[0].isnan().any(dim=0)
            distance_G = (position_G - line).abs()[reached_GG.any(dim=3 - axis)]
            radius = max([radius, *distance_G.tolist()])
    return radius


def composite(degraded_BCHW: Tensor, validity_B1HW: Tensor, decoded_BCHW: Tensor, feather: int = 0) -> Tensor:
    """Put the decoded picture into the hole.

    Args:
        degraded_BCHW: (B, C, H, W) images whose known pixels are kept, to the last bit where the ramp does not reach.
        validity_B1HW: (B, 1, H, W) validity maps, 1 where a pixel is known exactly.
        decoded_BCHW: (B, C, H, W) pictures to show in the hole, to the last bit.
        feather: Width in pixels of a ramp outside the hole over which the decoded picture fades out: at a distance d along the
            rows or columns it has the weight 1 - d / (feather + 1). 0 is a sharp border.

    Returns:
        (B, C, H, W) images.
    """
    hole_B1HW = _hole(validity_B1HW)
    decoded_BCHW = decoded_BCHW.to(degraded_BCHW.dtype)
    reach_B1HW = hole_B1HW.to(degraded_BCHW.dtype)
    weight_B1HW = reach_B1HW
    for _ in range(feather):  # each pixel is counted from the dilation on that first reaches it
        reach_B1HW = F.max_pool2d(reach_B1HW, 3, stride=1, padding=1)
        weight_B1HW = weight_B1HW + reach_B1HW
    mixed_BCHW = torch.lerp(degraded_BCHW, decoded_BCHW, weight_B1HW / (feather + 1)) if feather else degraded_BCHW
    mixed_BCHW = torch.where(weight_B1HW > 0, mixed_BCHW, degraded_BCHW)
    return torch.where(hole_B1HW, decoded_BCHW, mixed_BCHW)


@dataclass(frozen=True)
class KnownPixels:
    """Holds known pixels on their own path all along a sampler's way, for denoisers and flow maps alike.

    Attributes:
        image: (B, C, H, W) images, right where pixels are known.
        validity: (B, 1, H, W) validity maps, 1 where a pixel is known exactly.
    """

    image: Tensor
    validity: Tensor

    def in_denoiser(self, denoiser: Denoiser) -> Denoiser:
        """Return a denoiser whose estimate of a known pixel is the pixel: its states are then those of the pixel, noised."""
        return _KnownInDenoiser(denoiser.network, denoiser.schedule, denoiser.output, plain=denoiser, known=self)

    def in_flow_map(self, flow_map: FlowMap) -> FlowMap:
        """Return a flow map whose velocities at known pixels lead straight to these: (z_t - x) / t."""
        return _KnownInFlowMap(flow_map.network, flow_map.output, flow_map.guided, known=self)


@dataclass(frozen=True)
class _KnownInDenoiser(Denoiser):
    plain: Denoiser = field(kw_only=True)
    known: KnownPixels = field(kw_only=True)

    def predict(self, z_BCHW: Tensor, timestep: Tensor | int, condition: Condition) -> Prediction:
        answer = self.plain.predict(z_BCHW, timestep, condition)
        image = answer.image.lerp(self.known.image, self.known.validity)
        return Prediction(answer.z, image, "image", answer.signal, answer.noise_level)


@dataclass(frozen=True)
class _KnownInFlowMap(FlowMap):
    known: KnownPixels = field(kw_only=True)

    def velocities(self, z_BCHW: Tensor, r_B: Tensor, t_B: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        straight = (z_BCHW - self.known.image) / per_image(t_B).clamp(min=torch.finfo(t_B.dtype).tiny)
        u, v = super().velocities(z_BCHW, r_B, t_B, condition)
        return u.lerp(straight, self.known.validity), v.lerp(straight, self.known.validity)


def gray_patches(image_BCHW: Tensor, unknown_BN: Tensor, grid_size: int) -> Tensor:
    """Paint the patches of unknown tokens mid-grey.

    Args:
        image_BCHW: (B, C, H, W) images in [-1, 1].
        unknown_BN: (B, N) bool map of the tokens.
        grid_size: Side G of the token grid, a divisor of H and W.

    Returns:
        (B, C, H, W) images, 0 in the patches of unknown tokens.
    """
    return image_BCHW.masked_fill(patches_of(unknown_BN, grid_size, *image_BCHW.shape[-2:]), 0.0)


def patches_of(token_BN: Tensor, grid_size: int, height: int, width: int) -> Tensor:
    """Return the (B, 1, H, W) bool map of the pixels of (B, N) marked tokens."""
    token_B1GG = token_BN.view(-1, 1, grid_size, grid_size)
    return token_B1GG.repeat_interleave(height // grid_size, 2).repeat_interleave(width // grid_size, 3)


def _hole(validity_B1HW: Tensor) -> Tensor:
    """(B, 1, H, W) bool map of the pixels that are not known exactly."""
    return validity_B1HW < 1
