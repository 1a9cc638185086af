"""Numbers and names of files in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

NUM_NAMED = 3  # files named in messages and records


def count(number: int, thing: str) -> str:
    """Write so many things.

    Args:
        thing: One of them, such as ``image``; several are written with an s.

    Returns:
        Such as ``1 image`` or ``1,200 images``.
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def printable(name: str | Path) -> str:
    """Return a file name as it can be printed on one line.

    Args:
        name: The name; it may hold line breaks, or bytes that are no text.

    Returns:
        The same with those escaped.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(name))


def named(names: Iterable[str | Path]) -> str:
    """Name some files.

    Returns:
        The first ones, and how many more there are.
    """
    texts = [printable(name) for name in names]
    more = len(texts) - NUM_NAMED
    return ", ".join(texts[:NUM_NAMED]) + (f" and {more} more" if more > 0 else "")
