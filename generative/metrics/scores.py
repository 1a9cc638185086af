"""Scores of samples against the true image that no collapse can win, and how often their intervals contain it.

The energy score and the CRPS (Gneiting and Raftery 2007, JASA 102, sections 4.2 and 4.3) are proper: no other law than the true
posterior has a lower expectation. Their estimators divide the differences of K samples by K (K - 1), so that the expectation
does not depend on K. Among samples of the true posterior the truth has every rank alike (Talagrand histograms), so that
intervals of a nominal rate contain it at that rate, for any K.

Shape suffixes: K samples, B batch, C channels, H height, W width, L labels, O objects, R ranks 0 to K.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from generative.metrics.catalogue import Metric, Table
from generative.metrics.means import MeanMetrics
from generative.metrics.plots import Plot, Points
from generative.metrics.restoration import hole_mask
from generative.types import Batch

RATE = 0.8  # of the central intervals
SIDES = "too sure", "too unsure"  # samples that cover less, or more, than they should
TABLE = Table("samples against the truth", 81)
COVERAGES = {"pixels": "coverage", "mean": "coverage_mean", "object": "coverage_object"}  # by what is ranked
UNKNOWN = "of all pixels that are not known exactly"
METRICS = (
    Metric(
        "energy_score", "Energy score", "", "lower", 4, TABLE, placeholder="<output>", leading=True, main_of=("restore",),
        output="sample",
        definition="mean over images of |x_k - x| less half of |x_k - x_l|, means over samples and over pairs of different "
        "samples, with root mean squares over channels and pixels as norms, in units of [-1, 1]",
    ),
    Metric(
        "energy_score_hole", "Energy score in hole", "", "lower", 4, TABLE, in_hole=True, placeholder="<output>",
        main_of=("inpaint",), output="sample",
        definition="the same with norms over the pixels with validity 0, of images that have both known and unknown pixels",
    ),
    Metric(
        "crps", "CRPS", "", "lower", 4, TABLE, placeholder="<output>",
        definition="mean over images, channels and pixels of |x_k - x| less half of |x_k - x_l|, pixel by pixel",
    ),
    Metric(
        "crps_hole", "CRPS in hole", "", "lower", 4, TABLE, in_hole=True, placeholder="<output>",
        definition="the same over the pixels with validity 0 of those images that have both known and unknown pixels",
    ),
    Metric(
        "coverage", f"Coverage of {RATE:.0%}, pixels", "", None, 3, TABLE, placeholder="<output>", nominal=RATE, sides=SIDES,
        definition=f"share {UNKNOWN} whose true value lies in the central {RATE:.0%} of the samples; {RATE:g} is right, below "
        "it the samples are too sure",
    ),
    Metric(
        "coverage_mean", f"Coverage of {RATE:.0%}, mean colour", "", None, 3, TABLE, placeholder="<output>", nominal=RATE,
        sides=SIDES, main_of=("restore", "inpaint"), output="sample",
        definition=f"share of images whose mean {UNKNOWN}, that of the hole, lies in the central {RATE:.0%} of the samples'",
    ),
    Metric(
        "coverage_object", f"Coverage of {RATE:.0%}, object colour", "", None, 3, TABLE, placeholder="<output>", nominal=RATE,
        sides=SIDES,
        definition="share, over objects and channels, of the mean colours of those pixels that show an object, as the data "
        f"tell, and are not known exactly, that lie in the central {RATE:.0%} of the samples' mean colours of the same pixels",
    ),
)  # fmt: skip


def energy_score(samples_KBD: Tensor, truth_BD: Tensor) -> Tensor:
    """Estimate the energy score without bias.

    Args:
        samples_KBD: (K, B, D) samples of vectors, K at least 2.
        truth_BD: (B, D) true vectors.

    Returns:
        (B,) scores with the Euclidean norm.
    """
    num_samples = len(samples_KBD)
    to_truth_B = (samples_KBD - truth_BD).norm(dim=2).mean(0)
    samples_BKD = samples_KBD.transpose(0, 1).contiguous()
    between_B = torch.cdist(samples_BKD, samples_BKD, compute_mode="donot_use_mm_for_euclid_dist").sum((1, 2))
    return to_truth_B - between_B / (2 * num_samples * (num_samples - 1))


def crps(samples_K: Tensor, truth: Tensor) -> Tensor:
    """Estimate the continuous ranked probability score without bias.

    Args:
        samples_K: (K, ...) samples, K at least 2.
        truth: (...) true values.

    Returns:
        (...) scores.
    """
    num_samples = len(samples_K)
    # Of sorted samples, number i from 0 is the larger one of i pairs and the smaller one of K - 1 - i.
    weight_K = (2.0 * torch.arange(num_samples, device=samples_K.device) - num_samples + 1).to(samples_K)
    between = _weighted(weight_K, samples_K.sort(dim=0).values)
    return (samples_K - truth).abs().mean(0) - between / (num_samples * (num_samples - 1))


def rank_shares(samples_K: Tensor, truth: Tensor) -> Tensor:
    """Return the rank of the truth among the samples; among equal numbers it has every one of their ranks in part.

    Args:
        samples_K: (K, ...) samples.
        truth: (...) true values.

    Returns:
        (R, ...) shares, R = K + 1, with sum 1; NaN among samples of which one is NaN.
    """
    below, equal = (samples_K < truth).sum(0), (samples_K == truth).sum(0)
    rank_R = torch.arange(len(samples_K) + 1, device=truth.device).view(-1, *[1] * truth.ndim)
    shares = ((rank_R >= below) & (rank_R <= below + equal)) / (equal + 1.0)
    return shares.masked_fill(samples_K.isnan().any(0), torch.nan)


def inside(num_ranks: int, rate: float) -> Tensor:
    """Return which share of each rank's part of [0, 1] lies in the central part of length ``rate``: (R,) float64."""
    edges = torch.linspace(0, num_ranks, num_ranks + 1, dtype=torch.float64) / num_ranks
    low, high = (1 - rate) / 2, (1 + rate) / 2
    return (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * num_ranks


class SampleScores(MeanMetrics):
    """Collects the scores of several samples an image, over batches and ranks.

    Attributes:
        histograms: After ``compute``, by ``pixels/<output>``, ``mean/<output>`` and ``object/<output>`` the shares of the
            ranks 0 to K that the truth had among K samples; all alike are right.
    """

    metrics = METRICS

    def update(
        self, samples_KBCHW: Tensor, batch: Batch, output: str = "sample", objects_BLHW: Tensor | None = None
    ) -> None:
        """Take in the samples of a batch.

        Args:
            samples_KBCHW: (K, B, C, H, W) samples, K at least 2; clamped to [-1, 1].
            batch: The batch with its clean images and validity maps.
            output: What was sampled.
            objects_BLHW: (B, L, H, W) booleans, true where a pixel shows the label's object; None where nothing is known.
        """
        samples, clean = samples_KBCHW.float().clamp(-1, 1), batch.image.float()
        crps_BCHW = crps(samples, clean)
        self.add(f"crps/{output}", crps_BCHW.flatten(1).mean(1), batch.index)
        everywhere = torch.ones_like(clean[:, :1])
        self._add_energy(f"energy_score/{output}", samples, clean, everywhere, batch.index)
        unknown = everywhere if batch.validity is None else (batch.validity == 0).float()
        if batch.validity is not None and (hole := hole_mask(batch.validity)).any():
            self.add(f"crps_hole/{output}", crps_BCHW.mean(1, keepdim=True), batch.index, hole)
            rows = hole.flatten(1).any(1)
            name = f"energy_score_hole/{output}"
            self._add_energy(name, samples[:, rows], clean[rows], hole[rows].float(), batch.index[rows])
        rows = unknown.flatten(1).any(1)
        if rows.any():
            self._add_ranks("pixels", output, rank_shares(samples, clean), batch.index, unknown.expand_as(clean))
            means_KB, mean_B = (_mean_of(x[..., rows, :, :, :], unknown[rows]) for x in (samples, clean))
            self._add_ranks("mean", output, rank_shares(means_KB, mean_B), batch.index[rows])
        if objects_BLHW is not None:
            hidden_BLHW = objects_BLHW & (unknown > 0)
            image_O, label_O = hidden_BLHW.flatten(2).any(2).nonzero(as_tuple=True)
            if len(image_O):
                where_O1HW = hidden_BLHW[image_O, label_O, None].float()
                colours_KOC = torch.stack([_colour_of(sample[image_O], where_O1HW) for sample in samples])
                shares_ROC = rank_shares(colours_KOC, _colour_of(clean[image_O], where_O1HW))
                self._add_ranks("object", output, shares_ROC, batch.index[image_O])

    def _add_energy(self, name: str, samples: Tensor, clean: Tensor, where_B1HW: Tensor, index_B: Tensor) -> None:
        score_B = energy_score((samples * where_B1HW).flatten(2), (clean * where_B1HW).flatten(1))
        self.add(name, score_B / (where_B1HW.flatten(1).sum(1) * clean.shape[1]).sqrt(), index_B)

    def _add_ranks(
        self, what: str, output: str, shares_RB: Tensor, index_B: Tensor, weights: Tensor | None = None
    ) -> None:
        for rank, share in enumerate(shares_RB):
            self._means.add(f"rank/{what}/{output}/{rank}", share, weights)
        inside_R = inside(len(shares_RB), RATE).to(shares_RB)
        covered_B = _weighted(inside_R, shares_RB)
        self.by_image.add(f"{COVERAGES[what]}/{output}", covered_B, index_B, weights)

    def compute(self) -> dict[str, float]:
        means = self._means.compute()
        self.num_images = max((int(mean.weight) for name, mean in means.items() if name.startswith("crps/")), default=0)
        self.histograms: dict[str, list[float]] = {}
        metrics = {}
        for name, mean in means.items():
            kind, _, rest = name.partition("/")
            if kind == "rank":
                self.histograms.setdefault(rest.rpartition("/")[0], []).append(mean.value)
            else:
                metrics[name] = mean.value
        for name, shares in self.histograms.items():
            what, _, output = name.partition("/")
            covered = (torch.tensor(shares, dtype=torch.float64) * inside(len(shares), RATE)).sum().item()
            metrics[f"{COVERAGES[what]}/{output}"] = covered
        return metrics


def _weighted(weight_K: Tensor, values: Tensor) -> Tensor:
    """Return the (...) sum of (K, ...) values with weights: no product of matrices, whose factors a device may round."""
    return (weight_K.view(-1, *[1] * (values.ndim - 1)) * values).sum(0)


def _mean_of(image_BCHW: Tensor, where_B1HW: Tensor) -> Tensor:
    """Return (..., B) means over the marked pixels of (..., B, C, H, W) images, all channels together."""
    return (image_BCHW.mean(-3) * where_B1HW[:, 0]).sum((-2, -1)) / where_B1HW.sum((1, 2, 3))


def _colour_of(image_OCHW: Tensor, where_O1HW: Tensor) -> Tensor:
    """Return (O, C) mean colours over the marked pixels."""
    return (image_OCHW * where_O1HW).sum((2, 3)) / where_O1HW.sum((2, 3))


def plots(values: Mapping[str, float], record: Mapping[str, Any]) -> list[Plot]:
    """Draw how often the truth had each rank among the samples."""
    histograms = record.get("rank_histograms")
    if not isinstance(histograms, dict) or not histograms:
        return []
    words = {"pixels": "pixels", "mean": "mean colour", "object": "colour of the objects"}
    lines: dict[str, Points] = {}
    for name, shares in histograms.items():
        what, _, output = name.partition("/")
        lines[f"{words.get(what, what)}, {output}"] = list(enumerate(map(float, shares)))
    even = 1 / max(len(points) for points in lines.values())
    note = "Even is right; high at both ends: the samples are too alike, high in the middle: too different."
    return [Plot("Rank of the truth among the samples", "rank", lines, {"even": even}, note=note)]
