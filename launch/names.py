"""File names made of overrides."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

NAME_LENGTH = 150  # characters; file systems take 255


def file_name(parts: Iterable[str]) -> str:
    """Make a file name of overrides.

    Args:
        parts: The overrides.

    Returns:
        A name; one of more than ``NAME_LENGTH`` characters is shortened and told apart by a hash; ``default`` without parts.
    """
    text = ",".join(parts)
    name = re.sub(r"[^\w.=,+~-]+", "_", text) or "default"
    if len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    return f"{name[: NAME_LENGTH - len(digest) - 1]}_{digest}"
