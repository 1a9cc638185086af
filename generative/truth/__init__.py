"""Data whose truth is known: their law, and the exact posterior of every linear degradation with Gaussian noise."""

from generative.truth.law import GaussianMixture
from generative.truth.posterior import check_posterior, posteriors
from generative.truth.priors import DiscOnField, GaussianField
from generative.truth.reference import reference_problem

__all__ = ["DiscOnField", "GaussianField", "GaussianMixture", "check_posterior", "posteriors", "reference_problem"]
