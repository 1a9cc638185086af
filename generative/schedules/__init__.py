"""Laws of time: the noise at each timestep, the times a loss is taken at, and the learning rate over the steps."""

from generative.schedules.learning_rate import WarmupCosine
from generative.schedules.noise import NoiseSchedule
from generative.schedules.time_law import TimeLaw, TimePairs

__all__ = ["NoiseSchedule", "TimeLaw", "TimePairs", "WarmupCosine"]
