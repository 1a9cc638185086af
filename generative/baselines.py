"""Answers to a degraded image that need no training of a network: what every restorer must be better than.

Shape suffixes: B batch, C channels, H height, W width, N training images, D pixels and channels in a row.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from generative.float32 import whole_float32

RADIUS = 3  # px, of OpenCV's inpainting


def mean_colour(degraded_BCHW: Tensor, validity_B1HW: Tensor) -> Tensor:
    """Fill in the mean colour of the known pixels; an image of which nothing is known stays as it is.

    Args:
        degraded_BCHW: (B, C, H, W) images in [-1, 1].
        validity_B1HW: (B, 1, H, W) map, 1 where a pixel is known exactly, 0 elsewhere.

    Returns:
        (B, C, H, W) images.
    """
    num_known = validity_B1HW.sum((2, 3), keepdim=True)
    known = (degraded_BCHW * validity_B1HW).sum((2, 3), keepdim=True) / num_known.clamp(min=1)
    return torch.where((validity_B1HW > 0) | (num_known == 0), degraded_BCHW, known)


def diffused(degraded_BCHW: Tensor, validity_B1HW: Tensor) -> Tensor:
    """Fill in by OpenCV's inpainting after Navier-Stokes (Bertalmio et al., CVPR 2001); needs ``cv2``.

    Args:
        degraded_BCHW: (B, C, H, W) grey or colour images in [-1, 1].
        validity_B1HW: (B, 1, H, W) map, 1 where a pixel is known exactly, 0 elsewhere.

    Returns:
        (B, C, H, W) images of 8 bits in the holes; one of which nothing is known stays as it is.

    Raises:
        ImportError: OpenCV is not installed.
    """
    import cv2

    pixels_BHWC = ((degraded_BCHW + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    holes_BHW = (validity_B1HW[:, 0] == 0).byte().cpu().numpy()
    filled = [
        cv2.inpaint(np.ascontiguousarray(image), hole, RADIUS, cv2.INPAINT_NS).reshape(image.shape)
        for image, hole in zip(pixels_BHWC, holes_BHW, strict=True)
    ]
    image_BCHW = torch.from_numpy(np.stack(filled)).permute(0, 3, 1, 2).to(degraded_BCHW) / 127.5 - 1
    has_known_B111 = (validity_B1HW > 0).flatten(1).any(1)[:, None, None, None]
    return torch.where((validity_B1HW > 0) | ~has_known_B111, degraded_BCHW, image_BCHW)


def nearest(degraded_BCHW: Tensor, validity_B1HW: Tensor, training: Iterable[Tensor]) -> Tensor:
    """Answer with the training image of least squared distance: what memory alone reaches.

    Distances are over the known pixels, whose values stay; over all of an image of which nothing is known.

    Args:
        degraded_BCHW: (B, C, H, W) images in [-1, 1].
        validity_B1HW: (B, 1, H, W) map, 1 where a pixel is known exactly, 0 elsewhere.
        training: (N, C, H, W) training images in [-1, 1], a chunk at a time.

    Returns:
        (B, C, H, W) images.
    """
    has_known_B111 = (validity_B1HW > 0).flatten(1).any(1)[:, None, None, None]
    counts_B1HW = torch.where(has_known_B111, validity_B1HW, 1.0)
    target_BD, counts_BD = (degraded_BCHW * counts_B1HW).flatten(1), counts_B1HW.flatten(1)
    best_B = torch.full((len(degraded_BCHW),), torch.inf, device=degraded_BCHW.device)
    image_BCHW = degraded_BCHW.clone()
    for chunk_NCHW in training:
        # Without the target's own square, which is the same for all.
        with whole_float32(image_BCHW.device):
            distance_BN = counts_BD @ chunk_NCHW.square().sum(1).flatten(1).T - 2 * target_BD @ chunk_NCHW.flatten(1).T
        least_B, number_B = distance_BN.min(1)
        nearer_B = least_B < best_B
        best_B[nearer_B], image_BCHW[nearer_B] = least_B[nearer_B], chunk_NCHW[number_B[nearer_B]]
    return torch.where(validity_B1HW > 0, degraded_BCHW, image_BCHW)
