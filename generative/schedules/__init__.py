"""Functions of time: noise at each timestep, times a loss is taken at, tokens still masked, learning rate over the steps."""

from generative.schedules.learning_rate import WarmupCosine
from generative.schedules.masking import MaskSchedule
from generative.schedules.noise import NoiseSchedule
from generative.schedules.time_distribution import TimeDistribution, TimePairs

__all__ = ["MaskSchedule", "NoiseSchedule", "TimeDistribution", "TimePairs", "WarmupCosine"]
