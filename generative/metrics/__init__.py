"""Metrics of image restoration: additive float64 sums that merge over ranks."""

from generative.metrics.calibration import CalibrationMetrics
from generative.metrics.restoration import RestorationMetrics

__all__ = ["CalibrationMetrics", "RestorationMetrics"]
