"""Metrics by which papers on image fusion and restoration describe pictures: of a picture alone, and of it beside others.

All are taken of grey levels, 0 to 255, rounded as in a file of 8 bits, channel by channel. In fusion a picture is compared with
the sources that it was made of; the source of a restored picture is the clean one, and what was fused into the degraded
picture is what restoring it has changed.

Shape suffixes: P planes (a channel of an image each), H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.image import (
    structural_similarity_index_measure,
    total_variation,
    visual_information_fidelity,
)

from generative.float32 import whole_float32
from generative.metrics.catalogue import Metric, Table
from generative.metrics.means import MeanMetrics
from generative.metrics.restoration import SSIM_BORDER, SSIM_MIN_SIZE
from generative.types import Batch

LEVELS = 256
VIF_MIN_SIZE = 41  # pixels: its coarsest of four scales has a window of 3 pixels left
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, finest first (Wang et al. 2003)
MS_SSIM_MIN_SIZE = SSIM_MIN_SIZE * 2 ** (len(SCALE_WEIGHTS) - 1)
STRENGTH, ORIENTATION = (0.9994, -15.0, 0.5), (0.9879, -22.0, 0.8)  # of Qabf's sigmoids: height, slope, middle
SOBEL_SIZE = 3
CLEAN = "clean"

TABLE = Table("metrics of image fusion", 82)
EACH = "mean over images and channels of"
DEFINED = "images whose other side has no variation are left out"
METRICS = (
    Metric(
        "entropy", "EN", "bit", None, 3, TABLE,
        definition=f"{EACH} the Shannon entropy of the histogram of 256 grey levels, 0 to 8 (Roberts et al. 2008)",
    ),
    Metric(
        "spatial_frequency", "SF", "levels", None, 3, TABLE,
        definition=f"{EACH} the root of the mean squared difference of neighbours in rows plus that in columns, >= 0 "
        "(Eskicioglu and Fisher 1995)",
    ),
    Metric(
        "contrast", "SD", "levels", None, 3, TABLE,
        definition=f"{EACH} the standard deviation of the grey levels, 0 to 127.5 (Rao 1997)",
    ),
    Metric(
        "average_gradient", "AG", "levels", None, 3, TABLE,
        definition=f"{EACH} the mean of the root of half the sum of both squared differences to the next pixel, right and "
        "below, >= 0 (Cui et al. 2015)",
    ),
    Metric(
        "total_variation", "TV", "levels", None, 3, TABLE,
        definition=f"{EACH} the sum of the absolute differences of neighbours in rows and columns, divided by the number of "
        "pixels, >= 0 (Rudin et al. 1992, anisotropic)",
    ),
    Metric(
        "mutual_information", "MI", "bit", "higher", 3, TABLE,
        definition=f"{EACH} the mutual information of the grey levels with the clean image's, from the histogram of pairs of "
        "256 levels, 0 to the clean image's EN (Qu et al. 2002)",
    ),
    Metric(
        "correlation", "CC", "", "higher", 4, TABLE,
        definition=f"{EACH} Pearson's correlation with the clean image, -1 to 1; {DEFINED}",
    ),
    Metric(
        "scd", "SCD", "", "higher", 4, TABLE,
        definition=f"{EACH} the correlation of what was changed with what had to be, restored less degraded with clean less "
        "degraded image, -1 to 1: the sum of the correlations of differences (Aslantas and Bendes 2015) for the one source "
        f"that a restored image has beside the degraded one; {DEFINED}",
    ),
    Metric(
        "qabf", "Qabf", "", "higher", 4, TABLE,
        definition="mean over images and channels of how well strength and orientation of the clean image's edges (Sobel) are "
        "kept, weighted by their strength, 0 to 1 (Xydeas and Petrovic 2000, with its constants; 0.975 for equal images); "
        "images without an edge are left out",
    ),
    Metric(
        "nabf", "Nabf", "", "lower", 4, TABLE,
        definition="the same of 1 - Qabf where the restored edge is the stronger one: the edges that were added, 0 to 1 "
        "(Petrovic and Xydeas 2005)",
    ),
    Metric(
        "vif", "VIF", "", "higher", 4, TABLE,
        definition=f"{EACH} the visual information fidelity in the domain of pixels with the clean image, >= 0, 1 for equal "
        "images, above it where contrast was raised (Sheikh and Bovik 2006; torchmetrics, noise variance 2); absent below "
        f"{VIF_MIN_SIZE} pixels; {DEFINED}",
    ),
    Metric(
        "ms_ssim", "MS-SSIM", "", "higher", 4, TABLE,
        definition=f"{EACH} the SSIM over five scales with the clean image, 0 to 1 (Wang et al. 2003; torchmetrics, windows "
        f"inside the image only, negative means of a scale as 0); absent below {MS_SSIM_MIN_SIZE} pixels",
    ),
)  # fmt: skip


def entropy(levels_PHW: Tensor) -> Tensor:
    """Return the (P,) entropies in bits of the histograms of whole numbers in [0, 255]."""
    return _entropy_of_bins(levels_PHW.flatten(1), LEVELS)


def mutual_information(one_PHW: Tensor, other_PHW: Tensor) -> Tensor:
    """Return the (P,) mutual information in bits of the grey levels of two pictures, whole numbers in [0, 255]."""
    pairs_PN = (one_PHW * LEVELS + other_PHW).flatten(1)
    # Plane by plane: a histogram of pairs has 65,536 bins.
    joint_P = torch.cat([_entropy_of_bins(pairs_1N, LEVELS**2) for pairs_1N in pairs_PN.split(1)])
    return entropy(one_PHW) + entropy(other_PHW) - joint_P


def spatial_frequency(levels_PHW: Tensor) -> Tensor:
    """Return the (P,) spatial frequencies."""
    rows, columns = (levels_PHW.diff(dim=dim).square().flatten(1).mean(1) for dim in (2, 1))
    return (rows + columns).sqrt()


def average_gradient(levels_PHW: Tensor) -> Tensor:
    """Return the (P,) average gradients."""
    right, below = levels_PHW.diff(dim=2)[:, :-1], levels_PHW.diff(dim=1)[:, :, :-1]
    return ((right.square() + below.square()) / 2).sqrt().flatten(1).mean(1)


def correlation(one_PHW: Tensor, other_PHW: Tensor) -> Tensor:
    """Return the (P,) correlations of pixels; 0 where one of the two has no variation."""
    one, other = (x.flatten(1).double() - x.flatten(1).double().mean(1, keepdim=True) for x in (one_PHW, other_PHW))
    norms = one.norm(dim=1) * other.norm(dim=1)
    return (one * other).sum(1) / torch.where(norms == 0, 1.0, norms)


def edges(levels_PHW: Tensor) -> tuple[Tensor, Tensor]:
    """Return strength and orientation, in [-pi/2, pi/2], of Sobel's gradients of the pixels inside, (P, H - 2, W - 2)."""
    across = levels_PHW.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    x, y = F.conv2d(levels_PHW[:, None], torch.stack([across, across.T])[:, None]).unbind(1)
    return x.hypot(y), torch.where(x == 0, y.sign() * math.pi / 2, (y / x).atan())


def edge_transfer(sources: Sequence[Tensor], fused_PHW: Tensor) -> tuple[Tensor, Tensor]:
    """Compare the edges of a picture with those of its sources (Xydeas and Petrovic 2000).

    Args:
        sources: (P, H, W) grey levels of each source.

    Returns:
        Qabf and Nabf, (P,) each; NaN where no source has an edge.
    """
    strength, orientation = edges(fused_PHW)
    weights, kept, stronger = [], [], torch.ones_like(strength, dtype=torch.bool)
    for source_PHW in sources:
        own_strength, own_orientation = edges(source_PHW)
        larger = torch.maximum(strength, own_strength)
        ratio = torch.where(larger > 0, torch.minimum(strength, own_strength) / larger, 1.0)
        turn = ((orientation - own_orientation).abs() - math.pi / 2).abs() / (math.pi / 2)
        kept.append(_sigmoid(ratio, *STRENGTH) * _sigmoid(turn, *ORIENTATION))
        weights.append(own_strength)
        stronger &= strength > own_strength
    w, q = torch.stack(weights), torch.stack(kept)
    total = w.sum((0, 2, 3))
    return (w * q).sum((0, 2, 3)) / total, (w * (1 - q) * stronger).sum((0, 2, 3)) / total


def ms_ssim(levels_PHW: Tensor, clean_PHW: Tensor) -> Tensor:
    """Return the (P,) SSIM over five scales, over the windows inside the image; at least 176 x 176 pixels."""
    a, b = levels_PHW[:, None] / 255, clean_PHW[:, None] / 255
    inside, value = slice(SSIM_BORDER, -SSIM_BORDER), torch.ones(len(a), device=a.device)
    for number, weight in enumerate(SCALE_WEIGHTS, 1):
        if number == len(SCALE_WEIGHTS):
            _, full = structural_similarity_index_measure(
                a, b, data_range=1.0, reduction="none", return_full_image=True
            )
            factor = full[..., inside, inside].flatten(1).mean(1)  # torchmetrics reflects the border
        else:
            _, factor = structural_similarity_index_measure(
                a, b, data_range=1.0, reduction="none", return_contrast_sensitivity=True
            )
        value = value * factor.clamp(min=0) ** weight
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return value


def _sigmoid(x: Tensor, height: float, slope: float, middle: float) -> Tensor:
    return height / (1 + (slope * (x - middle)).exp())


def _entropy_of_bins(bins_PN: Tensor, num_bins: int) -> Tensor:
    """(P,) entropies in bits of numbers of bins; NaN where one is none, as of a model that diverged."""
    counts = torch.zeros(len(bins_PN), num_bins, dtype=torch.float64, device=bins_PN.device)
    counts.scatter_add_(1, bins_PN.nan_to_num().long(), torch.ones_like(bins_PN, dtype=torch.float64))
    share = counts / bins_PN.shape[1]
    return torch.where(bins_PN.isfinite().all(1), -torch.special.xlogy(share, share).sum(1) / math.log(2), math.nan)


OF_ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "entropy": entropy,
    "spatial_frequency": spatial_frequency,
    "contrast": lambda levels: levels.flatten(1).std(1, correction=0),
    "average_gradient": average_gradient,
    "total_variation": lambda levels: total_variation(levels[:, None], reduction="none") / levels[0].numel(),
}


class FusionMetrics(MeanMetrics):
    """Collects the metrics of named outputs over batches and ranks; those of one picture also of the clean one."""

    metrics = METRICS

    @torch.no_grad()
    def update(self, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Take in a batch.

        Args:
            outputs: (B, C, H, W) images in [-1, 1] by name; rounded to 8 bits.
            batch: The batch with its clean images and, for SCD, its degraded ones.
        """
        with whole_float32(batch.image.device):
            self._update(outputs, batch)

    def _update(self, outputs: dict[str, Tensor], batch: Batch) -> None:
        clean, degraded = _levels(batch.image), None if batch.degraded is None else _levels(batch.degraded)
        size, num_images = min(clean.shape[-2:]), len(batch.image)
        if size < SOBEL_SIZE:
            return

        def add(metric: str, name: str, values_P: Tensor, defined_P: Tensor | None = None) -> None:
            defined_P = torch.ones_like(values_P, dtype=torch.bool) if defined_P is None else defined_P
            values_BC, defined_BC = (x.view(num_images, -1) for x in (values_P, defined_P))
            if defined_BC.any():
                kept_BC = torch.where(defined_BC, values_BC, 0.0)
                self.add(f"{metric}/{name}", kept_BC, batch.index, defined_BC / values_BC.shape[1])

        varies = _varies(clean)
        has_edges = edges(clean)[0].flatten(1).any(1)
        for name, image in {CLEAN: batch.image, **outputs}.items():
            levels = _levels(image)
            for metric, of in OF_ONE.items():
                add(metric, name, of(levels))
            if name == CLEAN:
                continue
            add("mutual_information", name, mutual_information(levels, clean))
            add("correlation", name, correlation(levels, clean), varies)
            if degraded is not None and image is not batch.degraded:
                add("scd", name, correlation(levels - degraded, clean - degraded), _varies(clean - degraded))
            for metric, values_P in zip(("qabf", "nabf"), edge_transfer([clean], levels), strict=True):
                add(metric, name, values_P, has_edges)
            if size >= VIF_MIN_SIZE:
                add("vif", name, visual_information_fidelity(levels[:, None], clean[:, None], reduction="none"), varies)
            if size >= MS_SSIM_MIN_SIZE:
                add("ms_ssim", name, ms_ssim(levels, clean))


def _levels(image_BCHW: Tensor) -> Tensor:
    """(P, H, W) grey levels of the channels."""
    return ((image_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().flatten(0, 1)


def _varies(levels_PHW: Tensor) -> Tensor:
    return levels_PHW.flatten(1).max(1).values > levels_PHW.flatten(1).min(1).values
