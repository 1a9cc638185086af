"""What happens around the steps: averages, measurements, pictures, guards and reports."""

from callbacks.calibration import Calibration
from callbacks.checkpoint import LastCheckpoint
from callbacks.ema import EMA
from callbacks.evaluation import Evaluation
from callbacks.guards import NonFiniteGuard, NonFiniteLossError
from callbacks.image_grid import ImageGrid
from callbacks.progress import TrainingProgress
from callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "Calibration",
    "Evaluation",
    "ImageGrid",
    "LastCheckpoint",
    "NonFiniteGuard",
    "NonFiniteLossError",
    "Throughput",
    "TrainingProgress",
]
