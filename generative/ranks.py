"""Means over the ranks of a distributed training."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """Average a number that each rank has its own of; every rank must call it.

    Args:
        value: Tensor of the same shape on all ranks; no gradient flows through it.

    Returns:
        Its mean in float32, equal on all ranks; the value itself where there is one process.
    """
    value = value.detach().float()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
        value = value / dist.get_world_size()
    return value
