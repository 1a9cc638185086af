"""Trained weights: the fingerprint of a network for records and caches, and reading those of a run from its checkpoint."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def weights_hash(network: nn.Module) -> str:
    """Hash a network's weights and buffers.

    Args:
        network: The network.

    Returns:
        BLAKE2 digest of the names, types, shapes and values in its state dict, 16 hexadecimal digits; the same on every
        device.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()


class NotLoadedError(ValueError):
    """A file does not load as tensors and plain containers."""


def read_checkpoint(path: str | Path) -> Any:
    """Load a file of tensors and plain containers on the CPU; nothing else is ever unpickled.

    Args:
        path: The file, which must exist.

    Returns:
        Its content.

    Raises:
        NotLoadedError: It is damaged, or holds something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise NotLoadedError("it does not load as tensors and plain containers") from error


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights of a run's network: the averaged ones where the checkpoint has them, its buffers beside them.

    Args:
        checkpoint: A checkpoint of a run.

    Returns:
        Tensors by the network's own names.
    """
    prefix = "network."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    return state | checkpoint.get("callbacks", {}).get("EMA", {}).get("average", {})
