"""The exact posterior of images of a known law, given what a linear degradation with Gaussian noise left of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from generative.degradations import Degradation
from generative.truth.law import GaussianMixture

# Degraded images are cut off at black and white, which is no part of a linear map: up to so many of a pixel's values.
TOLERATED_CUT_OFF = 0.002


def posteriors(
    law: GaussianMixture, degradation: Degradation, degraded_BCHW: Tensor, validity_B1HW: Tensor
) -> Iterator[tuple[Tensor, GaussianMixture]]:
    """Find the posterior of each image, of images with the same validity map together.

    Args:
        law: Law of the clean images.
        degradation: What they were degraded by, with its severities of evaluation.
        degraded_BCHW: (B, C, H, W) degraded images, on any device.
        validity_B1HW: (B, 1, H, W) validity maps, on any device.

    Yields:
        (R,) row numbers, and the law of these R clean images, in float64 on the CPU.

    Raises:
        ValueError: The degradation is not linear, or no restorer is told what it did.
    """
    degraded_BCHW, validity_B1HW = degraded_BCHW.cpu().double(), validity_B1HW.cpu()
    maps_G, group_B = validity_B1HW.flatten(1).unique(dim=0, return_inverse=True)
    for group in range(len(maps_G)):
        rows_R = (group_B == group).nonzero()[:, 0]
        observation = degradation.observation(validity_B1HW[rows_R[:1]])
        operator_PP, noise_PP = observation.matrices(*degraded_BCHW.shape[-2:])
        if degradation.clips:
            _check_range(law, operator_PP, noise_PP)
        seen_RCP = observation.seen(degraded_BCHW[rows_R]).flatten(2)
        yield rows_R, law.given(seen_RCP, operator_PP, noise_PP)


def check_posterior(law: GaussianMixture, degradation: Degradation, image_size: int) -> None:
    """Check that images of a law have an exact posterior, whatever is left of them.

    Raises:
        ValueError: See ``posteriors``.
    """
    nothing_known = torch.zeros(1, 1, image_size, image_size)
    for _ in posteriors(law, degradation, nothing_known, nothing_known):
        pass


def _check_range(law: GaussianMixture, operator_PP: Tensor, noise_PP: Tensor) -> None:
    """Check that hardly any degraded pixel would have left [-1, 1]."""
    variance_P = torch.einsum("np,pq,nq->n", operator_PP, law.covariance_PP, operator_PP) + noise_PP.diagonal()
    mean_BMCP, std_P = law.means_BMCP @ operator_PP.T, variance_P.sqrt()
    normal = torch.distributions.Normal(0.0, 1.0)
    outside_BMCP = normal.cdf((mean_BMCP - 1) / std_P) + normal.cdf((-1 - mean_BMCP) / std_P)
    share = torch.einsum("bm,bmcp->bcp", law.weights_BM, outside_BMCP).max().item()
    if share > TOLERATED_CUT_OFF:
        raise ValueError(
            f"degradation: {100 * share:.2g} % of the values of a degraded pixel lie beyond black and white, where they are "
            "cut off and the exact posterior is not known: choose less noise, so that it is at most "
            f"{100 * TOLERATED_CUT_OFF:g} %, such as degradation=gaussian degradation.steps.noise.std=0.1."
        )
