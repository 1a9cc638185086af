"""A degradation that leaves the outlines alone: Canny's edges (1986), so that a restorer learns to paint.

Shape suffixes: I rows, J columns.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from generative.degradations.base import Degradation, nothing_known
from generative.degradations.blur import GAUSSIAN_TRUNCATE, MIN_SIGMA, filter_images, gaussian_kernel
from generative.degradations.levels import LUMA
from generative.degradations.severity import Severity, SeveritySpec
from generative.randomness import Randomness

SOBEL = (1.0, 2.0, 1.0), (-1.0, 0.0, 1.0)


class CannyEdges(Degradation):
    """Draws white edges on black: where the gradient is largest across itself, and strong or connected to strong ones."""

    def __init__(self, sigma: SeveritySpec = 1.0, low: SeveritySpec = 0.1, high: SeveritySpec = 0.2) -> None:
        """Set what counts as an edge.

        Args:
            sigma: Standard deviation in pixels of the blur before it, >= 0.
            low: Least gradient of an edge that is connected to a strong one: of Sobel's filter on brightnesses in [0, 1].
            high: Least gradient of a strong one.

        Raises:
            ValueError: ``low`` may exceed ``high``.
        """
        self.sigma = Severity(sigma, "CannyEdges.sigma", minimum=0)
        self.low = Severity(low, "CannyEdges.low", minimum=0)
        self.high = Severity(high, "CannyEdges.high", minimum=0)
        if any(self.low.highest(training) > self.high.lowest(training) for training in (True, False)):
            raise ValueError("CannyEdges.low: must not exceed CannyEdges.high.")

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        sigma_B, low_B, high_B = (each.sample(randomness, training) for each in (self.sigma, self.low, self.high))
        grey_B1HW = image_BCHW
        if image_BCHW.shape[1] == 3:
            grey_B1HW = (image_BCHW * image_BCHW.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        radius = math.ceil(GAUSSIAN_TRUNCATE * self.sigma.highest(training))
        kernel_BK = gaussian_kernel(sigma_B[:, None].clamp(min=MIN_SIGMA), radius)
        smooth_B1HW = filter_images(filter_images((grey_B1HW + 1) / 2, kernel_BK[:, :, None]), kernel_BK[:, None, :])
        edges_B1HW = canny(smooth_B1HW, low_B, high_B)
        return (edges_B1HW.to(image_BCHW.dtype) * 2 - 1).expand_as(image_BCHW), nothing_known(image_BCHW)


def canny(smooth_B1HW: Tensor, low_B: Tensor, high_B: Tensor) -> Tensor:
    """Find edges.

    Args:
        smooth_B1HW: (B, 1, H, W) blurred brightnesses in [0, 1].
        low_B: (B,) lower thresholds.
        high_B: (B,) upper thresholds.

    Returns:
        (B, 1, H, W) bool; none on the rim of a pixel.
    """
    across, along = (smooth_B1HW.new_tensor(part) for part in SOBEL)
    sobel_33 = across[:, None] * along
    di, dj = (filter_images(smooth_B1HW, part.expand(len(smooth_B1HW), 3, 3)) for part in (sobel_33.T, sobel_33))
    size = torch.hypot(di, dj)
    around = F.pad(size, (1, 1, 1, 1))

    def neighbour(i: int, j: int) -> Tensor:
        return around[..., 1 + i : 1 + i + size.shape[2], 1 + j : 1 + j + size.shape[3]]

    # The gradient meets the next ring of pixels between one beside the pixel and one at its corner.
    steep, rising = di.abs() > dj.abs(), di * dj >= 0
    share = torch.where(steep, dj.abs() / di.abs(), di.abs() / dj.abs()).nan_to_num()
    peak = torch.ones_like(size, dtype=torch.bool)
    for side in (1, -1):
        beside = torch.where(steep, neighbour(side, 0), neighbour(0, side))
        # With dj's sign on the other side the corner lies across: for steep gradients left and right change places.
        falling = torch.where(steep, neighbour(side, -side), neighbour(-side, side))
        corner = torch.where(rising, neighbour(side, side), falling)
        peak &= torch.lerp(beside, corner, share) <= size
    rows, columns = (torch.arange(length, device=size.device) for length in size.shape[2:])
    inside = ((rows > 0) & (rows < len(rows) - 1))[:, None] & (columns > 0) & (columns < len(columns) - 1)
    weak = peak & inside & (size >= low_B[:, None, None, None]) & (size > 0)
    return connected(weak & (size >= high_B[:, None, None, None]), weak)


def connected(strong_B1HW: Tensor, weak_B1HW: Tensor) -> Tensor:
    """Find what is connected to strong pixels; it takes no longer than there are pixels to find.

    Args:
        strong_B1HW: (B, 1, H, W) bool, within ``weak_B1HW``.
        weak_B1HW: (B, 1, H, W) bool, none on the rim of a pixel.

    Returns:
        (B, 1, H, W) bool, the strong ones and the weak ones that a path of neighbours leads to.
    """
    width = weak_B1HW.shape[-1]
    step = torch.arange(-1, 2, device=weak_B1HW.device)
    neighbours_9 = (step[:, None] * width + step).flatten()  # none is beyond a row's end, since the rim holds none
    edges, weak = strong_B1HW.flatten().clone(), weak_B1HW.flatten()
    newest = edges.nonzero()
    while len(newest):
        around = (newest + neighbours_9).flatten()
        newest = around[weak[around] & ~edges[around]].unique()[:, None]
        edges[newest] = True
    return edges.view_as(strong_B1HW)
