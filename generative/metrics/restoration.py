"""How close restored images are to the clean ones: PSNR in its conventions, SSIM (Wang et al., TIP 2004) and MSE.

Shape suffixes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from files.pixels import LUMA
from generative.float32 import whole_float32
from generative.metrics.catalogue import Metric, Pooled, Table
from generative.metrics.means import MeanMetrics
from generative.types import Batch

DATA_RANGE = 2.0  # images lie in [-1, 1]
PSNR_CAP = 60.0  # dB; rounding to 8 bits alone costs 20 log10(255) + 10 log10(12) = 58.9 dB
SSIM_BORDER = 5  # pixels on each side where the 11 x 11 window would leave the image
SSIM_MIN_SIZE = 2 * SSIM_BORDER + 1
SSIM_PIXELS_PER_CALL = 2**15  # on the CPU, larger calls leave the cache and take twice as long

IMAGES = (
    "restored and clean images in [-1, 1]; restored images are clamped to that range first; data range 2; SSIM sees them on "
    "[0, 1] with data range 1"
)
TABLE = Table("test", 10)


def psnr_of_mse(mse: Tensor) -> Tensor:
    """Convert squared errors of images in [-1, 1] to PSNR.

    Args:
        mse: Mean squared errors of any shape.

    Returns:
        PSNR in dB, at most ``PSNR_CAP``; NaN stays NaN.
    """
    return (10 * torch.log10(DATA_RANGE**2 / mse)).clamp(max=PSNR_CAP)


METRICS = (
    Metric(
        "psnr", "PSNR", "dB", "higher", 2, TABLE, leading=True,
        definition=f"mean over the images of the PSNR in dB of the image's MSE over all channels; capped at {PSNR_CAP:g} dB",
    ),
    Metric(
        "psnr_channel", "PSNR, channels", "dB", "higher", 2, TABLE, minor=True,
        definition="colour images: mean over the images of the mean of the three channels' PSNR; same cap",
    ),
    Metric(
        "psnr_luma", "PSNR, luma", "dB", "higher", 2, TABLE, minor=True,
        definition="colour images: mean over the images of the PSNR of BT.601 luma Y = 0.299 R + 0.587 G + 0.114 B at full "
        "range; same cap; papers that use the 16-235 range (MATLAB's rgb2ycbcr) report 1.32 dB more",
    ),
    Metric(
        "psnr_pooled", "PSNR, pooled", "dB", "higher", 2, TABLE, pooled=Pooled("mse", psnr_of_mse), main_of=("restore",),
        output="mean", perfect_costs=10 * math.log10(2),  # twice the squared error
        definition="PSNR in dB of the MSE over all images and channels: the one that theory speaks about; same cap",
    ),
    Metric(
        "psnr_hole", "PSNR in hole", "dB", "higher", 2, TABLE, leading=True, in_hole=True,
        pooled=Pooled("mse_hole", psnr_of_mse), main_of=("inpaint",), output="mean",
        definition="PSNR in dB of the MSE pooled over the pixels with validity 0 of those images that have both known and "
        "unknown pixels; absent when there is no such image; same cap",
    ),
    Metric(
        "ssim", "SSIM", "", "higher", 3, TABLE, leading=True,
        definition="mean over the images and channels of the SSIM of images on [0, 1], data range 1: 11 x 11 Gaussian "
        "window, sigma 1.5, K1 0.01, K2 0.03, windows inside the image only; absent for images smaller than "
        f"{SSIM_MIN_SIZE} pixels",
    ),
    Metric(
        "mse", "MSE", "", "lower", 5, TABLE, minor=True,
        definition="mean squared error over all images, channels and pixels, in units of [-1, 1]",
    ),
)  # fmt: skip


def psnr(restored_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
    """Return the PSNR of each image.

    Args:
        restored_BCHW: (B, C, H, W) images; clamped to [-1, 1].
        clean_BCHW: (B, C, H, W) images in [-1, 1].

    Returns:
        (B,) PSNR in dB of the MSE over all channels, capped.
    """
    return psnr_of_mse((restored_BCHW.float().clamp(-1, 1) - clean_BCHW).square().flatten(1).mean(1))


def ssim(restored_BCHW: Tensor, clean_BCHW: Tensor) -> Tensor:
    """Return the SSIM of each image as Wang et al. compute it: on [0, 1], over the windows that lie inside the image.

    SSIM compares local means by their ratio, so it is not the same for images in [-1, 1] with data range 2.

    Args:
        restored_BCHW: (B, C, H, W) images in [-1, 1], at least 11 x 11.
        clean_BCHW: (B, C, H, W) images in [-1, 1].

    Returns:
        (B,) SSIM, the mean over the channels.
    """
    # SSIM is a mean over channels, so channels can stand as images of one channel: the fastest shape for the CPU.
    restored, clean = ((image.flatten(0, 1).unsqueeze(1) + 1) / 2 for image in (restored_BCHW, clean_BCHW))
    height, width = clean.shape[-2:]
    planes = max(1, SSIM_PIXELS_PER_CALL // (height * width)) if clean.device.type == "cpu" else len(clean)
    inside = slice(SSIM_BORDER, -SSIM_BORDER)
    values = []
    for a, b in zip(restored.split(planes), clean.split(planes), strict=True):
        with whole_float32(a.device):  # variances are small differences of large means
            _, full = structural_similarity_index_measure(
                a, b, data_range=1.0, reduction="none", return_full_image=True
            )
        values.append(full[..., inside, inside].flatten(1).mean(1))  # torchmetrics reflects the border
    return torch.cat(values).view(clean_BCHW.shape[:2]).mean(1)


def hole_mask(validity_B1HW: Tensor) -> Tensor:
    """Mark the pixels of holes: unknown pixels of images that also have known ones.

    Args:
        validity_B1HW: (B, 1, H, W) map, 1 where the pixel is known exactly, 0 elsewhere.

    Returns:
        (B, 1, H, W) boolean mask; False everywhere in images of which nothing or everything is known.
    """
    unknown = validity_B1HW == 0
    is_partial = unknown.flatten(1).any(1) & ~unknown.flatten(1).all(1)
    return unknown & is_partial[:, None, None, None]


class RestorationMetrics(MeanMetrics):
    """Collects errors of named outputs over batches and ranks."""

    metrics = METRICS

    @torch.no_grad()
    def update(self, outputs: dict[str, Tensor], batch: Batch) -> None:
        """Take in a batch.

        Args:
            outputs: (B, C, H, W) restored images by name; clamped to [-1, 1].
            batch: The batch with its clean images and, for the error in the hole, its validity maps.

        Raises:
            ValueError: If an output's shape differs from the clean images'.
        """
        clean = batch.image.float()
        hole = None if batch.validity is None else hole_mask(batch.validity)
        for name, output in outputs.items():
            if output.shape != clean.shape:
                raise ValueError(
                    f"Output {name} has shape {tuple(output.shape)}, but the clean images have {tuple(clean.shape)}."
                )
            self._update_output(name, output.float().clamp(-1, 1), clean, hole, batch.index)

    def _update_output(self, name: str, restored: Tensor, clean: Tensor, hole: Tensor | None, index_B: Tensor) -> None:
        squared_error = (restored - clean).square()
        mse_BC = squared_error.flatten(2).mean(2)
        self.add(f"mse/{name}", mse_BC, index_B)
        self.add(f"psnr/{name}", psnr_of_mse(mse_BC.mean(1)), index_B)
        if clean.shape[1] == 3:
            self._means.add(f"psnr_channel/{name}", psnr_of_mse(mse_BC).mean(1))
            weights = clean.new_tensor(LUMA)[:, None, None]
            luma_error = ((restored - clean) * weights).sum(1).square()
            self._means.add(f"psnr_luma/{name}", psnr_of_mse(luma_error.flatten(1).mean(1)))
        if min(clean.shape[-2:]) >= SSIM_MIN_SIZE:
            self.add(f"ssim/{name}", ssim(restored, clean), index_B)
        if hole is not None and hole.any():
            self.add(f"mse_hole/{name}", squared_error.mean(1, keepdim=True), index_B, hole)

    def compute(self) -> dict[str, float]:
        means = self._means.compute()
        measured = [int(mean.weight) for name, mean in means.items() if name.startswith("psnr/")]
        self.num_images = max(measured, default=0)  # an output may be of some images only
        metrics = {}
        for name, mean in means.items():
            metric, output = name.split("/", 1)
            if metric == "mse_hole":
                metrics[f"psnr_hole/{output}"] = _psnr_of_float(mean.value)
                continue
            metrics[name] = mean.value
            if metric == "mse":
                metrics[f"psnr_pooled/{output}"] = _psnr_of_float(mean.value)
        return dict(sorted(metrics.items()))

    @classmethod
    def definition(cls) -> dict[str, str]:
        """Say what each metric means, and on which images."""
        return {"images": IMAGES, **super().definition()}


def _psnr_of_float(mse: float) -> float:
    return psnr_of_mse(torch.tensor(mse, dtype=torch.float64)).item()
