"""Training objectives: ``objective(flow_map or denoiser, ..., randomness) -> LossOutput``, stateless."""

from generative.objectives.alpha_flow import AlphaFlow
from generative.objectives.autoencoder import AutoencoderObjective
from generative.objectives.diffusion import DiffusionObjective
from generative.objectives.flow_matching import FlowMatching
from generative.objectives.image_terms import ImageTerms
from generative.objectives.masked_tokens import GammaRatio, MaskedTokenObjective, UniformRatio
from generative.objectives.mean_flow import ImprovedMeanFlow, MeanFlow
from generative.objectives.self_distillation import LagrangianSelfDistillation, ProgressiveSelfDistillation
from generative.objectives.weighting import AdaptiveWeight

__all__ = [
    "AdaptiveWeight",
    "AlphaFlow",
    "AutoencoderObjective",
    "DiffusionObjective",
    "FlowMatching",
    "GammaRatio",
    "ImageTerms",
    "ImprovedMeanFlow",
    "LagrangianSelfDistillation",
    "MaskedTokenObjective",
    "MeanFlow",
    "ProgressiveSelfDistillation",
    "UniformRatio",
]
