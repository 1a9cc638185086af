"""What happens around the steps: averages, measurements, pictures, guards and reports."""

from callbacks.baselines import Baselines
from callbacks.calibration import Calibration
from callbacks.checkpoint import LastCheckpoint
from callbacks.classification import Classification
from callbacks.codebook import Codebook
from callbacks.damaged_images import DamagedImages
from callbacks.ema import EMA
from callbacks.fusion import Fusion
from callbacks.generation import Generation
from callbacks.guards import NonFiniteGuard, NonFiniteLossError, SpikeError, SpikeGuard
from callbacks.image_grid import ImageGrid
from callbacks.kept_checkpoints import KeptCheckpoints
from callbacks.label_accuracy import LabelAccuracy
from callbacks.label_kept import LabelKept
from callbacks.likelihood import Likelihood
from callbacks.progress import TrainingProgress
from callbacks.rank_agreement import RankAgreement, RankDisagreementError
from callbacks.rank_watch import RankWatch
from callbacks.restoration import Evaluation
from callbacks.restoration_distances import RestorationDistances
from callbacks.steps_grid import StepsGrid
from callbacks.throughput import Throughput
from callbacks.token_accuracy import TokenAccuracy
from callbacks.watching import EarlyStop, MetricWatcher

__all__ = [
    "EMA",
    "Baselines",
    "Calibration",
    "Classification",
    "Codebook",
    "DamagedImages",
    "EarlyStop",
    "Evaluation",
    "Fusion",
    "Generation",
    "ImageGrid",
    "KeptCheckpoints",
    "LabelAccuracy",
    "LabelKept",
    "LastCheckpoint",
    "Likelihood",
    "MetricWatcher",
    "NonFiniteGuard",
    "NonFiniteLossError",
    "RankAgreement",
    "RankDisagreementError",
    "RankWatch",
    "RestorationDistances",
    "SpikeError",
    "SpikeGuard",
    "StepsGrid",
    "Throughput",
    "TokenAccuracy",
    "TrainingProgress",
]
