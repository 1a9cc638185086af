"""Compiles the forward pass that trains a network (``torch.compile``), and no other call of the network.

The compiled code stands beside the network: names of weights, checkpoints, averages and exports know nothing of it. Evaluation
runs the network as it is, as its batches have other sizes, each of which would be compiled anew. So do the transforms of
``torch.func``: inside compiled code a layer's own rule for tangents is passed over in silence (pytorch issue 192985).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from files.cache import cache_folder


class CompiledTraining:
    """One method of a network, compiled where it is called with gradients, within ``used``.

    Args:
        network: The network; it is not changed.
        method: Name of the method that the loss calls.

    Attributes:
        seconds: How long the first such call took, nearly all of it compilation; None before it.
    """

    def __init__(self, network: nn.Module, method: str) -> None:
        self._network = network
        self._method = method
        self._plain = getattr(network, method)
        self._compiled = torch.compile(self._plain)
        self.seconds: float | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method, compiled where that is meant for training."""
        if not torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None:
            return self._plain(*args, **kwargs)
        if self.seconds is not None:
            return self._compiled(*args, **kwargs)
        begin = time.perf_counter()
        result = self._compiled(*args, **kwargs)
        self.seconds = time.perf_counter() - begin
        return result

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the network's method be this one for a while."""
        setattr(self._network, self._method, self)
        try:
            yield
        finally:
            delattr(self._network, self._method)


def try_compiler(device: torch.device, cache_dir: str | None = None) -> None:
    """Compile something small, so that what is missing on a machine is said before a training begins.

    Compiled code is kept in the project's cache folder, unless ``TORCHINDUCTOR_CACHE_DIR`` names another one.

    Args:
        device: Device of the training.
        cache_dir: The cache folder, or None for that of ``files.cache``.

    Raises:
        ValueError: Nothing can be compiled here.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder(cache_dir) / "compiled"))
    try:
        torch.compile(_something, fullgraph=True)(torch.ones(2, device=device))
    except Exception as error:  # of torch's compiler, the C++ compiler or Triton, which have no common one
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".:")
        raise ValueError(
            f"there is no working compiler for the {device.type} ({why}): install g++ and Python's headers"
        ) from error


def _something(x: torch.Tensor) -> torch.Tensor:
    return x.sin() + 1
