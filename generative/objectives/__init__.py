"""Training objectives: ``objective(flow_map or network, ..., randomness) -> LossOutput``, stateless."""

from generative.objectives.alpha_flow import AlphaFlow
from generative.objectives.flow_matching import FlowMatching
from generative.objectives.mean_flow import ImprovedMeanFlow, MeanFlow
from generative.objectives.weighting import AdaptiveWeight

__all__ = ["AdaptiveWeight", "AlphaFlow", "FlowMatching", "ImprovedMeanFlow", "MeanFlow"]
