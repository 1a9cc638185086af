"""Answers against the exact posterior, for data whose law is known: what is missing is the network's or the solver's fault.

Shape suffixes: K samples, B batch, R rows of the batch, C channels, H height, W width, P = H W pixels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric as Sums

from generative.degradations import Degradation
from generative.metrics.catalogue import Metric, Table
from generative.metrics.means import MeanMetrics
from generative.randomness import Randomness
from generative.truth import GaussianField, GaussianMixture, check_posterior, posteriors
from generative.types import Batch

LARGEST_FIT = 32  # side in pixels up to which the covariance of the samples is compared
EXACT = "exact"  # the output that stands for as many draws of the exact posterior itself
TABLE = Table("exact posterior", 82)
METRICS = (
    Metric(
        "optimum_gap", "Above the least error", "dB", "lower", 3, TABLE, placeholder="<output>", leading=True,
        definition="10 log10 of the expected squared error of the output over that of E[x given degraded image], pooled over "
        "the images: the squared distance between them comes on top of the posterior's variance",
    ),
    Metric(
        "posterior_bias", "Bias", "", "lower", 3, TABLE, placeholder="<output>",
        definition="root mean square over images and pixels of the distance between the samples' mean and the posterior's, in "
        "units of the root mean square standard deviation of the posterior; the part that so many samples have is taken off",
    ),
    Metric(
        "posterior_spread", "Spread", "", None, 3, TABLE, placeholder="<output>",
        definition="root mean square standard deviation of the samples over that of the posterior; 1 is right",
    ),
    Metric(
        "posterior_w2", "Squared Wasserstein", "", "lower", 4, TABLE, placeholder="<output>",
        definition="squared 2-Wasserstein distance between Gaussians over the posterior's variance: the squared bias and "
        "that of the covariances of samples and posterior, each pooled over images and channels; of finitely many samples it "
        f"is not 0, as the output {EXACT} shows; absent for images larger than {LARGEST_FIT} pixels",
    ),
)  # fmt: skip


def squared_wasserstein(
    mean_P: Tensor, covariance_PP: Tensor, other_mean_P: Tensor, other_covariance_PP: Tensor
) -> Tensor:
    """Return the squared 2-Wasserstein distance of two Gaussians (Dowson and Landau 1982).

    Args:
        mean_P: (P,) mean of the one.
        covariance_PP: (P, P) its covariance.
        other_mean_P: (P,) mean of the other.
        other_covariance_PP: (P, P) its covariance.

    Returns:
        () distance.
    """
    variance_P, axes_PP = torch.linalg.eigh(covariance_PP)
    root_PP = axes_PP * variance_P.clamp(min=0).sqrt() @ axes_PP.T
    common = torch.linalg.eigvalsh(root_PP @ other_covariance_PP @ root_PP).clamp(min=0).sqrt().sum()
    return (mean_P - other_mean_P).square().sum() + covariance_PP.trace() + other_covariance_PP.trace() - 2 * common


class _Covariances(Sums):
    """The covariance of samples around their own mean, and the posterior's, pooled over images and channels."""

    full_state_update = False
    count: Tensor
    square: Tensor
    exact: Tensor

    def __init__(self, num_pixels: int) -> None:
        super().__init__()
        for name, shape in {"count": (), "square": (num_pixels,) * 2, "exact": (num_pixels,) * 2}.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, samples_KNP: Tensor, covariance_PP: Tensor) -> None:
        """Add the samples of N channels, and the covariance that they should have."""
        apart_NP = (samples_KNP - samples_KNP.mean(0)).flatten(0, 1).to(self.square)
        freedom = (len(samples_KNP) - 1) * samples_KNP.shape[1]
        self.count += freedom
        self.square += apart_NP.T @ apart_NP
        self.exact += freedom * covariance_PP.to(self.square)

    def compute(self) -> float:
        """Return ``distance`` over all ranks."""
        return self.distance()

    def distance(self) -> float:
        """Return the squared Wasserstein distance of the two, as a share of the posterior's variance."""
        nothing = torch.zeros_like(self.square[0])
        distance = squared_wasserstein(nothing, self.square / self.count, nothing, self.exact / self.count)
        return (distance / (self.exact / self.count).trace()).item()


class ExactPosteriorMetrics(MeanMetrics):
    """Collects the distances of answers from the exact posterior, over batches and ranks.

    Args:
        prior: Law of the data.
        degradation: What the images were degraded by.
        output: Name of the sampled output.

    Raises:
        ValueError: The degradation has no exact posterior.
    """

    metrics = METRICS

    def __init__(self, prior: GaussianField, degradation: Degradation, output: str = "sample") -> None:
        self.law = prior.law
        self.degradation = degradation
        self.output = output
        self._num_pixels = prior.image_size**2
        super().__init__()
        check_posterior(self.law, degradation, prior.image_size)  # says now what it would say later

    def reset(self, device: torch.device | str = "cpu") -> None:
        super().reset(device)
        outputs = (self.output, EXACT) if self._num_pixels <= LARGEST_FIT**2 else ()
        self._covariances = {output: _Covariances(self._num_pixels).to(self._means.device) for output in outputs}

    def update(
        self, batch: Batch, mean_BCHW: Tensor | None, samples_KBCHW: Tensor | None, randomness: Randomness
    ) -> Tensor | None:
        """Take in the answers to a batch.

        Args:
            batch: The batch with its degraded images.
            mean_BCHW: (B, C, H, W) answers of least squared error, or None.
            samples_KBCHW: (K, B, C, H, W) samples, K at least 2, or None.
            randomness: Source of as many draws of the exact posterior.

        Returns:
            These draws, (K, B, C, H, W); None without samples.
        """
        num_samples = 0 if samples_KBCHW is None else len(samples_KBCHW)
        uniform_BK, noise_BKCHW = (
            randomness.uniform(num_samples),
            randomness.normal(num_samples, *batch.image.shape[1:]),
        )
        uniform_KB = uniform_BK.T.cpu().double()
        exact_KBCP = noise_BKCHW.transpose(0, 1).flatten(3).cpu().double()
        for rows_R, law in posteriors(self.law, self.degradation, *batch.observed()):
            mean_RCP = law.mean_BCP
            self._means.add("variance", law.variance_BCP.flatten(1).mean(1))
            if mean_BCHW is not None:
                apart_RCP = mean_BCHW[rows_R].cpu().double().flatten(2) - mean_RCP
                self._means.add("excess/mean", apart_RCP.square().flatten(1).mean(1))
            if samples_KBCHW is None:
                continue
            for k in range(num_samples):
                exact_KBCP[k, rows_R] = law.draw(uniform_KB[k, rows_R], exact_KBCP[k, rows_R])
            covariance_PP = _within_and_between(law)
            samples_KRCP = samples_KBCHW[:, rows_R].flatten(3).cpu().double()
            for output, each_KRCP in ((self.output, samples_KRCP), (EXACT, exact_KBCP[:, rows_R])):
                self._add(output, each_KRCP - mean_RCP, covariance_PP)
        return None if samples_KBCHW is None else exact_KBCP.view(samples_KBCHW.shape).to(samples_KBCHW)

    def _add(self, output: str, residual_KRCP: Tensor, covariance_PP: Tensor) -> None:
        num_samples, variance = len(residual_KRCP), residual_KRCP.var(0)
        bias = residual_KRCP.mean(0).square() - variance / num_samples
        self._means.add(f"bias/{output}", bias.flatten(1).mean(1))
        self._means.add(f"spread/{output}", variance.flatten(1).mean(1))
        if output in self._covariances:
            self._covariances[output].update(residual_KRCP.flatten(1, 2), covariance_PP)

    def compute(self) -> dict[str, float]:
        means = self._means.compute()
        fits = {}
        for output, covariances in self._covariances.items():
            with covariances.sync_context():  # every rank takes part, with nothing where it saw no image
                fits[output] = covariances.distance() if covariances.count > 1 else math.nan
        if not means:
            return {}
        variance = means["variance"]
        self.num_images = int(variance.weight)
        metrics = {}
        for name, mean in means.items():
            kind, _, output = name.partition("/")
            ratio = mean.value / variance.value
            if kind == "excess":
                metrics[f"optimum_gap/{output}"] = 10 * math.log10(1 + ratio)
            elif kind == "bias":
                metrics[f"posterior_bias/{output}"] = math.sqrt(max(0.0, ratio))
                fits[output] = fits.get(output, math.nan) + max(0.0, ratio)
            elif kind == "spread":
                metrics[f"posterior_spread/{output}"] = math.sqrt(ratio)
        return metrics | {f"posterior_w2/{output}": value for output, value in fits.items() if not math.isnan(value)}


def _within_and_between(law: GaussianMixture) -> Tensor:
    """(P, P) covariance of a sample less the mean of its row, over rows and channels."""
    apart_RMCP = law.means_BMCP - law.mean_BCP[:, None]
    between_PP = torch.einsum("rm,rmcp,rmcq->pq", law.weights_BM, apart_RMCP, apart_RMCP)
    return law.covariance_PP + between_PP / apart_RMCP[:, 0, :, 0].numel()
