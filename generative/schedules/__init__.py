"""Laws of time: which times a loss is taken at, and how the learning rate moves over the steps."""

from generative.schedules.learning_rate import WarmupCosine
from generative.schedules.time_law import TimeLaw, TimePairs

__all__ = ["TimeLaw", "TimePairs", "WarmupCosine"]
