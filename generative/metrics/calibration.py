"""Whether samples are samples: the mean of K posterior samples against the MMSE answer, and the samples' spread.

With x and its K samples independent draws from the posterior, the error of the mean of K samples is (1 + 1/K) times the
MMSE error, which is 10 log10(1 + 1/K) dB: 3.01, 1.76, 0.97, 0.51, 0.26 dB for K = 1, 2, 4, 8, 16 (as used by Ohayon et
al., PMRF, arXiv 2410.00418, for K = 1). A sampler that has collapsed to the mean has no gap and no spread. The gap is
measured against the output ``mean``: where that is not the MMSE answer, as in MaskGIT, whose picture of the expected codes is
not the expected picture, the mean of many samples can be nearer, and only the spread and the gaps' differences speak of the
samples.

Shape suffixes: K samples, B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from generative.metrics.catalogue import Metric, Table
from generative.metrics.means import MeanMetrics
from generative.metrics.plots import Plot, Points
from generative.metrics.restoration import PSNR_CAP, hole_mask, psnr_of_mse
from generative.truth.reference import WORDS
from generative.types import Batch

TABLE = Table("calibration", 80)
CASE = "number of samples"
METRICS = (
    Metric(
        "calibration_psnr", "PSNR of mean of K", "dB", "higher", 2, TABLE, case=CASE, placeholder="mean_of_K",
        definition="PSNR in dB of the MSE, pooled over the images, of the mean of K samples; averaged over the disjoint "
        f"groups of K among the samples; capped at {PSNR_CAP:g} dB",
    ),
    Metric(
        "calibration_gap", "Gap of mean of K", "dB", None, 2, TABLE, case=CASE, placeholder="mean_of_K",
        definition="calibration_psnr/mean less calibration_psnr/mean_of_K, in dB; 10 log10(1 + 1/K) where the samples are "
        "true posterior samples and the output mean is their mean; below 0 the mean of K samples is nearer",
    ),
    Metric(
        "solver_gap", "The same, exact network", "dB", None, 2, TABLE, case=CASE, placeholder="mean_of_K",
        definition="the gap that the same solver with the same steps has with the exact network, by its bias and spread in "
        f"{WORDS}: how far it is from 10 log10(1 + 1/K) is the solver's part of the gap",
    ),
    Metric(
        "solver_spread", "Spread kept, exact network", "", None, 3, TABLE, placeholder="<output>",
        definition="standard deviation over the true one of samples of the same solver with the same steps and the exact "
        f"network, in {WORDS}; 1 is right",
    ),
    Metric(
        "spread", "Spread", "", None, 3, TABLE, placeholder="<output>",
        definition="root mean square over images and pixels of the unbiased standard deviation over the samples, in units "
        "of [-1, 1]",
    ),
    Metric(
        "spread_ratio", "Spread over error", "", None, 2, TABLE, placeholder="<output>", nominal=1.0,
        sides=("scatters too little", "scatters too much"),
        definition="spread over the root mean squared error of the samples' expectation, as estimated from the mean of K "
        "samples; 1 is right, below it the samples scatter less than they err",
    ),
    Metric(
        "spread_hole", "Spread in hole", "", None, 3, TABLE, in_hole=True, placeholder="<output>",
        definition="the same over the pixels with validity 0 of those images that have both known and unknown pixels",
    ),
)  # fmt: skip


def theoretical_gap(num_averaged: int, bias: float = 0.0, spread: float = 1.0) -> float:
    """Return by how much the mean of samples falls behind the MMSE answer; of posterior samples unless told otherwise.

    Args:
        num_averaged: Number K of samples averaged.
        bias: Error of their expectation, in standard deviations of the posterior.
        spread: Their standard deviation over that of the posterior.

    Returns:
        10 log10(1 + bias^2 + spread^2/K) dB.
    """
    return 10 * math.log10(1 + bias**2 + spread**2 / num_averaged)


class CalibrationMetrics(MeanMetrics):
    """Collects the errors and the spread of several samples an image, over batches and ranks.

    Args:
        num_samples: Samples per image, at least 2.
        output: Name of the sampled output, used in the metrics' names.

    Raises:
        ValueError: If there are fewer than 2 samples.

    Attributes:
        num_averaged: The numbers K that are reported: the powers of two up to ``num_samples``.
        num_images: Images of all ranks behind the last ``compute``.
    """

    metrics = METRICS

    def __init__(self, num_samples: int, output: str = "sample") -> None:
        super().__init__()
        if num_samples < 2:
            raise ValueError(f"callbacks.calibration.num_samples={num_samples} must be at least 2 to have a spread.")
        self.num_samples = num_samples
        self.output = output
        self.num_averaged = [2**power for power in range(num_samples.bit_length()) if 2**power <= num_samples]

    @torch.no_grad()
    def update(self, samples_KBCHW: Tensor, batch: Batch, mean_BCHW: Tensor | None = None) -> None:
        """Take in the samples of a batch.

        Args:
            samples_KBCHW: (K, B, C, H, W) samples with K = ``num_samples``; clamped to [-1, 1].
            batch: The batch with its clean images and, for the spread in the hole, its validity maps.
            mean_BCHW: (B, C, H, W) MMSE answer, clamped to [-1, 1], or None.
        """
        clean = batch.image.float()
        samples = samples_KBCHW.float().clamp(-1, 1)
        for k in self.num_averaged:
            num_groups = self.num_samples // k
            averaged = samples[: num_groups * k].unflatten(0, (num_groups, k)).mean(1)
            self._means.add(f"mse/mean_of_{k}", (averaged - clean).square().flatten(2).mean(2))
        if mean_BCHW is not None:
            self._means.add("mse/mean", (mean_BCHW.float().clamp(-1, 1) - clean).square().flatten(1).mean(1))
        variance = samples.var(0)
        self._means.add("variance", variance.flatten(1).mean(1))
        if batch.validity is not None and (hole := hole_mask(batch.validity)).any():
            self._means.add("variance_hole", variance.mean(1, keepdim=True), hole)

    def compute(self) -> dict[str, float]:
        means = self._means.compute()
        if not means:
            return {}
        self.num_images = int(means["variance"].weight)
        psnr = {
            name.removeprefix("mse/"): psnr_of_mse(torch.tensor(mean.value, dtype=torch.float64)).item()
            for name, mean in means.items()
            if name.startswith("mse/")
        }
        metrics = {f"calibration_psnr/{name}": value for name, value in psnr.items()}
        if "mean" in psnr:
            names = [f"mean_of_{k}" for k in self.num_averaged]
            metrics |= {f"calibration_gap/{name}": psnr["mean"] - psnr[name] for name in names}
        variance, most = means["variance"].value, self.num_averaged[-1]
        metrics[f"spread/{self.output}"] = math.sqrt(variance)
        error = means[f"mse/mean_of_{most}"].value - variance / most  # what is left of it for ever more samples
        metrics[f"spread_ratio/{self.output}"] = math.sqrt(variance / error) if error > 0 else math.inf
        if "variance_hole" in means:
            metrics[f"spread_hole/{self.output}"] = math.sqrt(means["variance_hole"].value)
        return metrics

    def definition(self) -> dict[str, object]:  # type: ignore[override]
        """Say what each metric means, for the record next to the numbers.

        Returns:
            A sentence per metric, and the gaps that theory asks for.
        """
        of_mean = "PSNR in dB of the MSE, pooled over the same images, of the output mean"
        theory = {f"calibration_gap/mean_of_{k}": round(theoretical_gap(k), 4) for k in self.num_averaged}
        return {**super().definition(), "calibration_psnr/mean": of_mean, "theory_dB": theory}


def plots(values: Mapping[str, float], record: Mapping[str, Any]) -> list[Plot]:
    """Draw the gap of the mean of K samples against that of true posterior samples."""
    if "num_samples" not in record:
        return []
    lines: dict[str, Points] = {}
    for key, name in (("calibration_gap", "measured"), ("solver_gap", "same solver, exact network")):
        start = f"{key}/mean_of_"
        gaps = {name.removeprefix(start): gap for name, gap in values.items() if name.startswith(start)}
        if points := sorted((float(number), gap) for number, gap in gaps.items() if number.isdecimal()):
            lines[name] = points
    if not lines:
        return []
    lines["posterior samples"] = [(number, theoretical_gap(int(number))) for number, _ in next(iter(lines.values()))]
    note = "How far the mean of K samples falls behind the output mean; on the line of posterior samples it is as it should be."
    return [Plot("Gap of the mean of K samples, dB", "number K of samples", lines, {}, True, note)]
