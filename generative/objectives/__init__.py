"""Training objectives: ``objective(flow_map or denoiser, ..., randomness) -> LossOutput``, stateless."""

from generative.objectives.alpha_flow import AlphaFlow
from generative.objectives.diffusion import DiffusionObjective
from generative.objectives.flow_matching import FlowMatching
from generative.objectives.mean_flow import ImprovedMeanFlow, MeanFlow
from generative.objectives.weighting import AdaptiveWeight

__all__ = ["AdaptiveWeight", "AlphaFlow", "DiffusionObjective", "FlowMatching", "ImprovedMeanFlow", "MeanFlow"]
