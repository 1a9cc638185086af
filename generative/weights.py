"""Fingerprints of networks, for the records of what was measured with them and for the names of caches."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


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
