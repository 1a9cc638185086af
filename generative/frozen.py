"""A network that is used and not trained, such as a tokenizer or what a metric looks through."""

from __future__ import annotations

from typing import Generic, Self, TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


class Frozen(Generic[Network]):
    """Holds a network in evaluation mode, without gradients in its weights.

    It is no ``nn.Module``: as the attribute of one it stays out of the owner's state dict, parameters and device, so move it
    with ``to``.
    """

    def __init__(self, network: Network) -> None:
        self.network = network.eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> Self:
        self.network.to(device)
        return self
