"""The metrics as the page asks for them."""

from __future__ import annotations

from generative.metrics import catalogue
from generative.metrics.catalogue import metric_of, split_name

LEADING = (
    "psnr", "psnr_hole", "ssim", "fid_paired", "fid", "fd_label_classifier_paired", "fd_label_classifier",
    "label_accuracy", "label_accuracy_assisted",
)  # fmt: skip
MINOR = tuple(metric.key for metric in catalogue.listed().values() if metric.minor)


def metric_name(metric: str) -> str:
    """Name a metric for a heading."""
    return metric_of(metric).name


def direction(metric: str) -> int:
    """Say which way a metric is better: 1 where higher is, -1 where lower is, 0 where neither is."""
    return metric_of(metric).sign


def is_by_case(metric: str) -> bool:
    """Say whether the part of a value's name after the slash is a case and not an output."""
    return bool(metric_of(split_name(metric)[0]).case)


def ordered(metrics: set[str]) -> list[str]:
    """Sort metrics as the tables that end an evaluation do."""
    return [metric.key for metric in catalogue.ordered(metrics)]
