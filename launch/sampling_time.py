"""How long a module takes to make its outputs, from the calls of ``sample`` in an evaluation."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

DEFINITION = (
    "median over the batches of the wall time of sample() by the images of a batch, the device waited for; only batches of "
    "the largest size count, the first one is left out where there are several; a module that makes several outputs at once "
    "shares its time among them by their network calls"
)


def time_record(times: Sequence[tuple[int, float]], num_network_calls: dict[str, float]) -> dict[str, Any]:
    """Describe the times of calls.

    Args:
        times: Number of images and seconds of each call.
        num_network_calls: Network calls behind an image, by output; a mean where images differ.

    Returns:
        Seconds per image by output and how they were measured; empty where nothing was sampled.
    """
    total = sum(num_network_calls.values())
    if not times or total == 0:
        return {}
    size = max(size for size, _ in times)
    seconds = [seconds for number, seconds in times if number == size]
    counted = seconds[1:] or seconds
    each = statistics.median(counted) / size
    return {
        "seconds_per_image": {name: float(f"{each * n / total:.4g}") for name, n in num_network_calls.items()},
        "seconds_measured": {"definition": DEFINITION, "batch_size": size, "num_batches": len(counted)},
    }
