"""JPEG compression (ITU-T T.81) and decompression on the device, without the lossless entropy coding.

Tables, quality scaling and rounding follow libjpeg, colours JFIF 1.02.

Shape suffixes: u, v frequency or position within an 8x8 block; h, w number of blocks.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from files.pixels import from_levels, to_levels
from generative.degradations.base import Degradation, nothing_known
from generative.degradations.resample import pad_to_multiple
from generative.degradations.severity import Severity, SeveritySpec
from generative.randomness import Randomness

BLOCK = 8

# Quantisation tables at quality 50: ITU-T T.81, annex K, tables K.1 and K.2.
LUMINANCE_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)


class Jpeg(Degradation):
    """Compresses and decompresses grey or RGB images; no pixel stays known."""

    def __init__(self, quality: SeveritySpec, subsample_chroma: bool = True) -> None:
        """Set the strength.

        Args:
            quality: libjpeg's quality, a whole number from 1 to 100.
            subsample_chroma: Whether colours are kept at half the resolution (4:2:0) or at the full one (4:4:4); of no
                effect on grey images.
        """
        self.quality = Severity(quality, "Jpeg.quality", minimum=1, maximum=100, integer=True)
        self.subsample_chroma = subsample_chroma

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        """Other than 1 or 3 channels are a ``ValueError``."""
        channels, height, width = image_BCHW.shape[1:]
        if channels not in (1, 3):
            raise ValueError(f"Jpeg: images must have 1 or 3 channels, got {channels}.")
        quality_B = self.quality.sample(randomness, training)
        levels_BCHW = to_levels(image_BCHW)
        if channels == 1:
            levels_BCHW = compress_planes(pad_to_multiple(levels_BCHW, BLOCK), LUMINANCE_TABLE, quality_B)
        else:
            levels_BCHW = self._compress_colour(levels_BCHW, quality_B)
        return from_levels(levels_BCHW[:, :, :height, :width]), nothing_known(image_BCHW)

    def _compress_colour(self, levels_B3HW: Tensor, quality_B: Tensor) -> Tensor:
        """Compress RGB levels in [0, 255] as luma and chroma; returns them padded to a multiple of the block."""
        planes_B3HW = pad_to_multiple(rgb_to_ycbcr(levels_B3HW), 2 * BLOCK if self.subsample_chroma else BLOCK)
        luma_B1HW, chroma_B2HW = planes_B3HW[:, :1], planes_B3HW[:, 1:]
        luma_B1HW = compress_planes(luma_B1HW, LUMINANCE_TABLE, quality_B)
        if self.subsample_chroma:
            chroma_B2HW = halve(chroma_B2HW)
        chroma_B2HW = compress_planes(chroma_B2HW, CHROMINANCE_TABLE, quality_B)
        if self.subsample_chroma:
            chroma_B2HW = double(chroma_B2HW)
        return ycbcr_to_rgb(torch.cat([luma_B1HW, chroma_B2HW], dim=1))


def rgb_to_ycbcr(levels_B3HW: Tensor) -> Tensor:
    """Convert colours as JFIF 1.02 does.

    Args:
        levels_B3HW: (B, 3, H, W) RGB levels in [0, 255].

    Returns:
        (B, 3, H, W) whole levels of luma, blue and red difference in [0, 255].
    """
    red, green, blue = levels_B3HW.unbind(dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma, (blue - luma) / 1.772 + 128, (red - luma) / 1.402 + 128], dim=1)
    return planes.round().clamp(0, 255)


def ycbcr_to_rgb(planes_B3HW: Tensor) -> Tensor:
    """Invert ``rgb_to_ycbcr``.

    Args:
        planes_B3HW: (B, 3, H, W) levels of luma, blue and red difference in [0, 255].

    Returns:
        (B, 3, H, W) whole RGB levels in [0, 255].
    """
    luma, blue_difference, red_difference = planes_B3HW.unbind(dim=1)
    red = luma + 1.402 * (red_difference - 128)
    blue = luma + 1.772 * (blue_difference - 128)
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], dim=1).round().clamp(0, 255)


def halve(planes_BCHW: Tensor) -> Tensor:
    """Average 2x2 pixels (libjpeg's ``h2v2_downsample``: halves are rounded down in even columns and up in odd ones).

    Args:
        planes_BCHW: (B, C, H, W) whole levels, H and W even.

    Returns:
        (B, C, H / 2, W / 2) whole levels.
    """
    mean_BChw = F.avg_pool2d(planes_BCHW, 2)
    is_odd_w = torch.arange(mean_BChw.shape[-1], device=mean_BChw.device) % 2
    return (mean_BChw + (1 + is_odd_w) / 4).floor()


def double(planes_BChw: Tensor) -> Tensor:
    """Interpolate linearly (libjpeg's ``h2v2_fancy_upsample``: halves are rounded up in even columns, down in odd).

    Args:
        planes_BChw: (B, C, h, w) whole levels.

    Returns:
        (B, C, 2 h, 2 w) whole levels.
    """
    large_BCHW = F.interpolate(planes_BChw, scale_factor=2, mode="bilinear")
    is_odd_W = torch.arange(large_BCHW.shape[-1], device=large_BCHW.device) % 2
    return (large_BCHW + (8 - is_odd_W) / 16).floor()


def quantisation_tables(base: tuple[tuple[int, ...], ...], quality_B: Tensor) -> Tensor:
    """Scale a base table by libjpeg's quality (``jpeg_quality_scaling``).

    Args:
        base: 8x8 table at quality 50.
        quality_B: (B,) whole qualities from 1 to 100.

    Returns:
        (8, 8, B) whole steps in [1, 255].
    """
    base_88 = torch.tensor(base, dtype=torch.float32, device=quality_B.device)
    percent_B = torch.where(quality_B < 50, (5000 / quality_B).floor(), 200 - 2 * quality_B)
    return ((base_88[:, :, None] * percent_B + 50) / 100).floor().clamp(1, 255)


def compress_planes(planes_BCHW: Tensor, base_table: tuple[tuple[int, ...], ...], quality_B: Tensor) -> Tensor:
    """Quantise the cosine transform of 8x8 blocks and go back.

    Args:
        planes_BCHW: (B, C, H, W) levels in [0, 255], H and W multiples of 8.
        base_table: 8x8 quantisation table at quality 50.
        quality_B: (B,) whole qualities from 1 to 100.

    Returns:
        (B, C, H, W) whole levels in [0, 255].
    """
    basis_uv = _cosine_basis(planes_BCHW.device)
    step_uvB111 = quantisation_tables(base_table, quality_B)[..., None, None, None]
    blocks_uvBChw = rearrange(planes_BCHW - 128, "b c (h u) (w v) -> u v b c h w", u=BLOCK, v=BLOCK)
    # libjpeg's forward transform yields whole eighths, and its quantiser rounds halves away from zero. Whole numbers
    # make exact ties, which are frequent among rational coefficients such as the mean, independent of float rounding.
    eighths_uvBChw = (8 * _transform_blocks(blocks_uvBChw, basis_uv)).round()
    multiples_uvBChw = (eighths_uvBChw.abs() / (8 * step_uvB111) + 0.5).floor().copysign(eighths_uvBChw)
    blocks_uvBChw = _transform_blocks(multiples_uvBChw * step_uvB111, basis_uv.T)
    return (rearrange(blocks_uvBChw, "u v b c h w -> b c (h u) (w v)") + 128).round().clamp(0, 255)


def _cosine_basis(device: torch.device) -> Tensor:
    """Return the orthonormal (frequency, position) matrix of the 8-point DCT-II."""
    position = torch.arange(BLOCK, device=device)
    basis = torch.cos(math.pi / BLOCK * (position + 0.5) * position[:, None]) * math.sqrt(2 / BLOCK)
    basis[0] = math.sqrt(1 / BLOCK)
    return basis


def _transform_blocks(blocks_uvBChw: Tensor, matrix_88: Tensor) -> Tensor:
    """Apply an 8x8 matrix along both axes of the blocks."""
    # Sums and not matrix products, whose rounding may depend on the batch size and is coarse under TF32 or autocast:
    # the slightest difference before the quantiser becomes a whole quantisation step.
    for dim in (0, 1):
        lines = blocks_uvBChw.unbind(dim)
        shape = (BLOCK, 1, 1, 1, 1, 1)  # the new axis comes first; the other one has moved to second place
        transformed = matrix_88[:, 0].view(shape) * lines[0]
        for k in range(1, BLOCK):
            transformed.addcmul_(matrix_88[:, k].view(shape), lines[k])
        blocks_uvBChw = transformed if dim == 0 else transformed.transpose(0, 1)
    return blocks_uvBChw
