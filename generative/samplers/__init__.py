"""Samplers: ``sampler(flow_map, source, condition) -> images``; how a trained network is turned into pictures."""

from generative.samplers.flow import Euler, FlowMapSampler, FlowSampler, Heun

__all__ = ["Euler", "FlowMapSampler", "FlowSampler", "Heun"]
