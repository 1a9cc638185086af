"""Metrics of image restoration: additive float64 sums that merge over ranks."""

from generative.metrics.calibration import CalibrationMetrics
from generative.metrics.exact_posterior import ExactPosteriorMetrics
from generative.metrics.restoration import RestorationMetrics
from generative.metrics.scores import SampleScores

__all__ = ["CalibrationMetrics", "ExactPosteriorMetrics", "RestorationMetrics", "SampleScores"]
