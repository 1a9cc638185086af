"""Negative log-likelihood of test images in bits per dimension: one value of 8 bits; without a model it is 8."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from generative.metrics.catalogue import Metric, Table
from generative.metrics.means import MeanMetrics

TABLE = Table("likelihood", 83)
NLL, BOUND = "nll", "nll_bound"
METRICS = (
    Metric(
        NLL, "NLL", "bit/dim", "lower", 3, TABLE, placeholder="<output>", leading=True,
        definition="mean over images of the negative log-likelihood of their grey levels over the number of their values, "
        "of the images with uniform noise of one grey level (arXiv 1511.01844): of a flow by its differential equation "
        "without guidance, with Hutchinson's estimate of the divergence (arXiv 1810.01367); exact: of the known law",
    ),
    Metric(
        BOUND, "NLL, bound", "bit/dim", "lower", 3, TABLE, placeholder="<output>", leading=True,
        definition="mean over images of the variational bound of the same of a diffusion, without guidance, its timesteps "
        "drawn (arXiv 2006.11239, eq. 5); the likelihood itself is lower",
    ),
)  # fmt: skip


class LikelihoodMetrics(MeanMetrics):
    """Collects bits per dimension."""

    metrics = METRICS

    def update(self, bits: Mapping[str, Tensor], output: str, index_B: Tensor) -> None:
        """Take in a batch.

        Args:
            bits: (B,) bits per dimension by key of the metric.
            output: What they are of.
            index_B: (B,) int64 indices of the images.
        """
        for key, bits_B in bits.items():
            self.add(f"{key}/{output}", bits_B, index_B)
