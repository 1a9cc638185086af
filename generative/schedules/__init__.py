"""Schedules: noise at each timestep, times that a loss is computed at, share of masked tokens, learning rate by step."""

from generative.schedules.learning_rate import WarmupCosine
from generative.schedules.masking import MaskSchedule
from generative.schedules.noise import NoiseSchedule
from generative.schedules.time_distribution import TimeDistribution, TimePairs

__all__ = ["MaskSchedule", "NoiseSchedule", "TimeDistribution", "TimePairs", "WarmupCosine"]
