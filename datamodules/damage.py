"""What becomes of image files that cannot be decoded: the run stops, or continues without them and counts them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from datamodules.splits import Splits
from files.words import NUM_NAMED, count, named

Policy = Literal["stop", "skip"]


class DamagedImageError(ValueError):
    """An image cannot be decoded and ``data.damaged=stop``; the message names it and the remedy in one sentence."""


def left_out(damaged: Sequence[str], total: int, policy: str | None) -> tuple[str, ...]:
    """Leave out images that were found damaged before training, or stop.

    Args:
        damaged: Names of the damaged images.
        total: Number of images looked at.
        policy: ``data.damaged``.

    Returns:
        The names, which a warning has counted.

    Raises:
        DamagedImageError: If there are any and the policy is to stop.
        ValueError: If nothing else is left.
    """
    if not damaged:
        return ()
    if policy == "stop":
        raise DamagedImageError(
            f"{len(damaged)} of {count(total, 'image')} cannot be decoded ({named(damaged)}): replace them, or set "
            "data.damaged=skip to leave them out and count them"
        )
    if len(damaged) == total:
        raise ValueError(f"none of the {total} image files can be decoded ({named(damaged)}): check the data's paths")
    rank_zero_warn(f"{len(damaged)} of {count(total, 'image')} cannot be decoded and are left out ({named(damaged)})")
    return tuple(damaged)


def damage_record(policy: Policy, splits: Splits, met: Collection[int]) -> dict[str, Any]:
    """Describe what became of image files that cannot be decoded.

    Args:
        met: Indices of the training images that were replaced when they were drawn.

    Returns:
        The policy, the number of such images so far, left out or replaced, and the names of the first ones.
    """
    names = [*splits.damaged[:NUM_NAMED], *(splits.train.name_of(index) for index in sorted(met)[:NUM_NAMED])]
    return {
        "damaged": policy,
        "damaged_images": len(splits.damaged) + len(met),
        "damaged_first": names[:NUM_NAMED],
    }
