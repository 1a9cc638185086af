"""The paradigms as LightningModules: each adds ``loss`` and ``sample`` to ``GenerativeModule``."""

from lightning_modules.base import GenerativeModule
from lightning_modules.meanflow import MeanFlowRestorer
from lightning_modules.regression import RegressionRestorer

__all__ = ["GenerativeModule", "MeanFlowRestorer", "RegressionRestorer"]
