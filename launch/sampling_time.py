"""How long a module takes to make its outputs, taken from the calls of ``sample`` in an evaluation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from generative.randomness import Randomness
from generative.types import Batch
from lightning_modules import GenerativeModule

DEFINITION = (
    "median over the batches of the wall time of sample() by the images of a batch, the device waited for; only batches of "
    "the largest size count, the first one is left out where there are several; a module that makes several outputs at once "
    "shares its time among them by their network calls"
)


class SamplingTime:
    """Collects the wall times of a module's calls of ``sample``."""

    def __init__(self) -> None:
        self._calls: list[tuple[int, float]] = []
        self._outputs: list[str] = []

    def timed(self, sample: Callable[[Batch, Randomness], dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
        """Wrap a module's ``sample``.

        Args:
            sample: The method.

        Returns:
            The same with its calls timed.
        """

        def run(batch: Batch, randomness: Randomness) -> dict[str, Tensor]:
            _wait(batch.image.device)
            begin = time.perf_counter()
            outputs = sample(batch, randomness)
            _wait(batch.image.device)
            self._calls.append((len(batch.image), time.perf_counter() - begin))
            self._outputs = list(outputs)
            return outputs

        return run

    def record(self, num_network_calls: dict[str, float]) -> dict[str, Any]:
        """Describe the times.

        Args:
            num_network_calls: Network calls behind an image, by output; a mean where images differ.

        Returns:
            Seconds per image by output and how they were measured; empty where nothing was sampled or it is not known how
            several outputs share the time.
        """
        calls = num_network_calls or ({self._outputs[0]: 1} if len(self._outputs) == 1 else {})
        total = sum(calls.values())
        if not self._calls or total == 0:
            return {}
        size = max(size for size, _ in self._calls)
        times = [seconds for number, seconds in self._calls if number == size]
        counted = times[1:] or times
        seconds = statistics.median(counted) / size
        return {
            "seconds_per_image": {name: float(f"{seconds * number / total:.4g}") for name, number in calls.items()},
            "seconds_measured": {"definition": DEFINITION, "batch_size": size, "num_batches": len(counted)},
        }


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


@contextmanager
def sampling_timed(module: GenerativeModule) -> Iterator[SamplingTime]:
    """Time every call of a module's ``sample``, whoever makes it.

    Args:
        module: The module.

    Yields:
        The times.
    """
    times = SamplingTime()
    module.sample = times.timed(module.sample)  # type: ignore[method-assign]
    try:
        yield times
    finally:
        del module.sample  # the class's own again
