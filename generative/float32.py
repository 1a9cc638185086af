"""Products of float32 numbers with all their digits, for what must not depend on the device.

A GPU may round the factors of matrix products and convolutions to the 10 bits of TF32: of products where
``torch.set_float32_matmul_precision`` allows it, as trainings do, of convolutions unless it is forbidden. And autocast, if it
is on, rounds them to bfloat16 or float16.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


def is_rounded(device: torch.device) -> bool:
    """Whether factors of products are rounded on a device, as things stand."""
    cut = torch.get_float32_matmul_precision() != "highest" or torch.backends.cudnn.allow_tf32
    return _autocasts(device) or (device.type == "cuda" and cut)


@contextmanager
def whole_float32(device: torch.device) -> Iterator[None]:
    """Round no factors for a while; what a gradient passes backwards later is not meant."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False) if _autocasts(device) else nullcontext():
            yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
