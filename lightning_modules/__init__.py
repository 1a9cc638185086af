"""The paradigms as LightningModules: each adds ``loss`` and ``sample`` to ``GenerativeModule``, and says what it is."""

from lightning_modules.base import TrainingModule
from lightning_modules.conditional_module import ConditionalModule
from lightning_modules.contract import Card, Output, Part
from lightning_modules.ddpm import DDPM
from lightning_modules.generative_module import GenerativeModule
from lightning_modules.label_classifier import LabelClassifierModule
from lightning_modules.maskgit import MaskGIT
from lightning_modules.meanflow import MeanFlow
from lightning_modules.regression import RegressionRestorer
from lightning_modules.sharding import FullyShardedStrategy
from lightning_modules.vqgan import VQGAN

__all__ = [
    "DDPM",
    "VQGAN",
    "Card",
    "ConditionalModule",
    "FullyShardedStrategy",
    "GenerativeModule",
    "LabelClassifierModule",
    "MaskGIT",
    "MeanFlow",
    "Output",
    "Part",
    "RegressionRestorer",
    "TrainingModule",
]
