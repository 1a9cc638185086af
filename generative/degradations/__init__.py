"""Degradations: random, vectorised maps from clean images to degraded ones and what is still known of them.

``degradation(image_BCHW, randomness, training) -> Degraded(image, validity)``. Compositions name their steps; the
presets are the files of ``conf/degradation``.
"""

from generative.degradations.affine import Affine
from generative.degradations.base import Degradation
from generative.degradations.blur import GaussianBlur, MotionBlur
from generative.degradations.compose import Mixture, Sequential
from generative.degradations.edges import CannyEdges
from generative.degradations.jpeg import Jpeg
from generative.degradations.levels import Greyscale, PoissonNoise, Quantisation
from generative.degradations.masks import BlockMask, BrushMask
from generative.degradations.noise import GaussianNoise, SaltAndPepper
from generative.degradations.observation import Observation
from generative.degradations.resample import Downsample
from generative.degradations.severity import Severity, SeveritySpec

__all__ = [
    "Affine",
    "BlockMask",
    "BrushMask",
    "CannyEdges",
    "Degradation",
    "Downsample",
    "GaussianBlur",
    "GaussianNoise",
    "Greyscale",
    "Jpeg",
    "Mixture",
    "MotionBlur",
    "Observation",
    "PoissonNoise",
    "Quantisation",
    "SaltAndPepper",
    "Sequential",
    "Severity",
    "SeveritySpec",
]
