"""Degradations of what a pixel can say: photon noise, few levels, no colour."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from files.pixels import LUMA
from generative.degradations.base import Degradation, nothing_known
from generative.degradations.severity import Severity, SeveritySpec
from generative.randomness import Randomness

BEYOND = 8  # standard deviations above the mean up to which counts are told apart: a float32 draw reaches 5.3


class PoissonNoise(Degradation):
    """Counts photons: a pixel of brightness p in [0, 1] becomes n / peak, n Poisson of mean peak p; no pixel stays known."""

    def __init__(self, peak: SeveritySpec) -> None:
        """Set the strength.

        Args:
            peak: Mean count of a white pixel, in [0.1, 500]: the fewer, the more noise.
        """
        self.peak = Severity(peak, "PoissonNoise.peak", minimum=0.1, maximum=500)

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        peak_B111 = self.peak.sample(randomness, training)[:, None, None, None]
        mean_BCHW = (image_BCHW + 1) / 2 * peak_B111
        count_BCHW = _counts(mean_BCHW, randomness.uniform(*image_BCHW.shape[1:]), self.peak.highest(training))
        return count_BCHW / peak_B111 * 2 - 1, nothing_known(image_BCHW)


def _counts(mean: Tensor, uniform: Tensor, highest: float) -> Tensor:
    """Poisson counts by the inverse of their distribution, each a function of its own uniform number alone.

    Args:
        mean: Means of any shape, at most ``highest``.
        uniform: Numbers in [0, 1) of the same shape.

    Returns:
        Counts as floats.
    """
    mean, uniform = mean.double(), uniform.double()  # exp(-500) is no float32
    probability, below, count = (-mean).exp(), torch.zeros_like(mean), torch.zeros_like(mean)
    for k in range(math.ceil(highest + BEYOND * math.sqrt(highest) + BEYOND)):
        below = below + probability
        count += uniform >= below
        probability = probability * mean / (k + 1)
    return count.float()


class Quantisation(Degradation):
    """Rounds every channel to a few equally spaced levels, black and white among them; no pixel counts as known."""

    def __init__(self, levels: SeveritySpec) -> None:
        """Set the strength.

        Args:
            levels: Number of levels, a whole number in [2, 256].
        """
        self.levels = Severity(levels, "Quantisation.levels", minimum=2, maximum=256, integer=True)

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        half_B111 = (self.levels.sample(randomness, training)[:, None, None, None] - 1) / 2
        return ((image_BCHW + 1) * half_B111).round() / half_B111 - 1, nothing_known(image_BCHW)


class Greyscale(Degradation):
    """Takes the colour: all channels become the brightness (ITU-R BT.601), so that a restorer learns to colour."""

    def check_images(self, image_size: int, channels: int, key: str = "degradation") -> None:
        if channels != 3:
            raise ValueError(
                f"{key} takes the colour from images, and the data have {channels} channel: choose another degradation, or "
                "data.channels=3."
            )

    def degrade(self, image_BCHW: Tensor, randomness: Randomness, training: bool) -> tuple[Tensor, Tensor]:
        if image_BCHW.shape[1] == 1:  # a grey picture among those in colour
            return image_BCHW, nothing_known(image_BCHW)
        luma_B1HW = (image_BCHW * image_BCHW.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
        return luma_B1HW.expand_as(image_BCHW), nothing_known(image_BCHW)
