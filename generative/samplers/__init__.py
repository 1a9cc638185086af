"""Samplers: how a trained network is turned into pictures.

Flows and flow maps: ``sampler(flow_map, source, condition) -> images``. Diffusions: ``sampler(denoiser, noise, condition,
randomness) -> images``. Masked tokens: ``sampler(network, tokens, unknown, condition, randomness) -> tokens``. All yield
their ``states`` too.
"""

from generative.samplers.diffusion import DDIM, Ancestral, DiffusionSampler, DPMSolverPP2M
from generative.samplers.flow import Euler, FlowMapSampler, FlowSampler, Heun
from generative.samplers.masked import MaskedState, MaskedTokenSampler

__all__ = [
    "DDIM",
    "Ancestral",
    "DPMSolverPP2M",
    "DiffusionSampler",
    "Euler",
    "FlowMapSampler",
    "FlowSampler",
    "Heun",
    "MaskedState",
    "MaskedTokenSampler",
]
