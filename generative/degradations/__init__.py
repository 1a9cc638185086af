"""Degradations: random, vectorised maps from clean images to degraded ones and what is still known of them.

``degradation(image_BCHW, randomness, training) -> Degraded(image, validity)``. Compositions name their steps; the
presets are the files of ``conf/degradation``.
"""

from generative.degradations.base import Degradation
from generative.degradations.blur import GaussianBlur, MotionBlur
from generative.degradations.compose import Mixture, Sequential
from generative.degradations.jpeg import Jpeg
from generative.degradations.masks import BlockMask, BrushMask
from generative.degradations.noise import GaussianNoise, SaltAndPepper
from generative.degradations.observation import Observation
from generative.degradations.resample import Downsample
from generative.degradations.severity import Severity, SeveritySpec

__all__ = [
    "BlockMask",
    "BrushMask",
    "Degradation",
    "Downsample",
    "GaussianBlur",
    "GaussianNoise",
    "Jpeg",
    "Mixture",
    "MotionBlur",
    "Observation",
    "SaltAndPepper",
    "Sequential",
    "Severity",
    "SeveritySpec",
]
