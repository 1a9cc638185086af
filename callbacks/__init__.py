"""What happens around the steps: averages, measurements, pictures, guards and reports."""

from callbacks.calibration import Calibration
from callbacks.checkpoint import LastCheckpoint
from callbacks.classification import Classification
from callbacks.ema import EMA
from callbacks.evaluation import Evaluation
from callbacks.generation import Generation
from callbacks.guards import NonFiniteGuard, NonFiniteLossError
from callbacks.image_grid import DenoisingGrid, ImageGrid
from callbacks.label_accuracy import LabelAccuracy
from callbacks.progress import TrainingProgress
from callbacks.throughput import Throughput

__all__ = [
    "EMA",
    "Calibration",
    "Classification",
    "DenoisingGrid",
    "Evaluation",
    "Generation",
    "ImageGrid",
    "LabelAccuracy",
    "LastCheckpoint",
    "NonFiniteGuard",
    "NonFiniteLossError",
    "Throughput",
    "TrainingProgress",
]
