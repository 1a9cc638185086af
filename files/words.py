"""Numbers in sentences."""

from __future__ import annotations


def count(number: int, thing: str) -> str:
    """Write so many things.

    Args:
        thing: One of them, such as ``image``; several are written with an s.

    Returns:
        Such as ``1 image`` or ``1,200 images``.
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
