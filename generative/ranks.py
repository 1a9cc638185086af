"""Means over the ranks of a distributed training."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

TINY = 1e-30  # in place of no row at all


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


def means_of_rows(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Average values of rows that are unequally many on the ranks; every rank must call it, also one that has no row.

    Args:
        rows: (M,) values of this rank's rows by name, equally many of each; the names are the same on all ranks.

    Returns:
        () sums over this rank's rows, divided by the rows of the average rank, without gradient: their mean over the ranks is
        that over the rows of all of them. 0 where no rank has any.
    """
    if not rows:
        return {}
    first = next(iter(rows.values()))
    count = mean_over_ranks(first.new_full((), len(first), dtype=torch.float32)).clamp(min=TINY)
    return {name: value_M.detach().float().sum() / count for name, value_M in rows.items()}
