"""The metrics as a reader meets them: their names, families, and which way is better."""

from __future__ import annotations

import re

from launch.evaluation import TABLES

NAMES = {
    "psnr": "PSNR",
    "psnr_hole": "PSNR in hole",
    "psnr_channel": "PSNR, channels",
    "psnr_luma": "PSNR, luma",
    "psnr_pooled": "PSNR, pooled",
    "ssim": "SSIM",
    "mse": "MSE",
    "fid": "FID",
    "kid": "KID",
    "fid_paired": "FID to clean",
    "kid_paired": "KID to clean",
    "inception_score": "Inception score",
    "fd_label_classifier": "FD classifier",
    "kd_label_classifier": "KD classifier",
    "precision_label_classifier": "Precision",
    "recall_label_classifier": "Recall",
    "fd_label_classifier_paired": "FD to clean",
    "kd_label_classifier_paired": "KD to clean",
    "calibration_psnr": "PSNR of mean of K",
    "calibration_gap": "Gap of mean of K",
}
UNITS = {"psnr": "dB", "calibration_psnr": "dB", "calibration_gap": "dB"}
_HIGHER = re.compile(
    r"(psnr|ssim|inception_score|precision|recall|label_accuracy|exact_sets|token_accuracy|codebook_usage)(_|$)"
)
_LOWER = re.compile(r"(mse|loss|fid|kid|fd|kd)(_|$)")
# Metrics whose part after the slash is no image: a set of labels, a share of masked tokens, a number of samples.
_BY_CASE = re.compile(r"(label_accuracy|exact_sets|token_accuracy|codebook|calibration)")
MINOR = ("psnr_channel", "psnr_luma", "psnr_pooled", "mse", "precision_label_classifier", "recall_label_classifier")
LEADING = (
    "psnr", "psnr_hole", "ssim", "fid_paired", "fid", "fd_label_classifier_paired", "fd_label_classifier",
    "label_accuracy", "label_accuracy_assisted",
)  # fmt: skip
ALL = tuple(dict.fromkeys(metric for table in TABLES.values() for metric in table))


def metric_name(metric: str) -> str:
    """Name a metric for a heading.

    Args:
        metric: Its key.

    Returns:
        Words, with the unit where there is one.
    """
    words = NAMES.get(metric, metric.replace("_", " ").capitalize())
    unit = next((unit for prefix, unit in UNITS.items() if metric.startswith(prefix)), "")
    return f"{words}, {unit}" if unit else words


def direction(metric: str) -> int:
    """Say which way a metric is better.

    Args:
        metric: Its key.

    Returns:
        1 where higher is better, -1 where lower is, 0 where neither is.
    """
    return 1 if _HIGHER.match(metric) else -1 if _LOWER.match(metric) else 0


def is_by_case(metric: str) -> bool:
    """Say whether the part of a metric's name after the slash is a case and not an output.

    Args:
        metric: Its key.

    Returns:
        True for label accuracy by set, token accuracy by masked share and the like.
    """
    return _BY_CASE.match(metric) is not None


def ordered(metrics: set[str]) -> list[str]:
    """Sort metrics as the tables that end an evaluation do.

    Args:
        metrics: Keys.

    Returns:
        The known ones in their order, then the others by name.
    """
    return [metric for metric in ALL if metric in metrics] + sorted(metrics - set(ALL))
