"""Intervals of means over test images and of their differences: the bootstrap (Efron 1979), paired by image.

The images of a test set are drawn again and again with replacement, the same ones for everything that is compared, so that
what makes an image hard for all is no part of the difference (Efron and Tibshirani 1993, chapter 8; percentile intervals,
chapter 13).

Shape suffixes: N images, R resamples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from generative.metrics.by_image import ImageValues
from generative.randomness import generator_for

NUM_RESAMPLES = 2000
LEVEL = 0.95
WORDS = f"{LEVEL:.0%} intervals of {NUM_RESAMPLES:,} resamples of the test images"


class Interval(NamedTuple):
    """An estimate with its interval.

    Attributes:
        low: Lower end.
        value: The estimate itself.
        high: Upper end.
    """

    low: float
    value: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign is told; not where an end is no number."""
        return self.low > 0 or self.high < 0


@functools.lru_cache(maxsize=4)
def _counts(num_images: int) -> Tensor:
    """Return how often each image is in each resample: (R, N) float64."""
    generator = generator_for(0, "bootstrap")
    return torch.stack(
        [
            torch.bincount(torch.randint(num_images, (num_images,), generator=generator), minlength=num_images)
            for _ in range(NUM_RESAMPLES)
        ]
    ).double()


def bootstrap(
    terms: Sequence[tuple[float, ImageValues]], value: Callable[[Tensor], Tensor] | None = None
) -> Interval | None:
    """Estimate a weighted sum of values that follow from means over images, with its percentile interval.

    Args:
        terms: Factors and what they are of: 1 and -1 for a difference, 1/S each for a mean over S seeds.
        value: Turns a mean into a value, as the PSNR of a squared error; None where the mean is the value.

    Returns:
        Estimate and interval over the images that all have; None for fewer than two.
    """
    common = functools.reduce(lambda a, b: a[torch.isin(a, b)], (values.index for _, values in terms))
    if len(common) < 2:
        return None
    value = value or (lambda mean: mean)
    counts_RN = _counts(len(common))
    estimate, resampled_R = torch.zeros((), dtype=torch.float64), torch.zeros(NUM_RESAMPLES, dtype=torch.float64)
    for factor, values in ((factor, values.of(common)) for factor, values in terms):
        estimate = estimate + factor * value(values.mean)
        resampled_R = resampled_R + factor * value((counts_RN @ values.total) / (counts_RN @ values.weight))
    low, high = resampled_R.quantile(torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return Interval(low, estimate.item(), high)
