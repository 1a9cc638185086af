"""Animations: frames of equal size as a GIF or WebP file, whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from files.whole import whole_file

AnimationKind = Literal["gif", "webp"]
FRAME_MS, LAST_MS = 120, 1500  # how long a frame stays, and the last one
MAX_FRAMES = 60  # of a sampler's steps, evenly, the first and the last among them


def write_animation(frames: Sequence[Image.Image], path: Path, frame_ms: int = FRAME_MS) -> None:
    """Write frames that are shown one after another, again and again.

    Args:
        frames: RGB images of one size.
        path: File to write, of the kind that its suffix says: ``.gif``, of 256 colours a frame, or ``.webp``, without loss.
        frame_ms: Milliseconds that a frame stays; the last one stays ``LAST_MS`` where that is longer.
    """
    durations = [frame_ms] * (len(frames) - 1) + [max(frame_ms, LAST_MS)]
    options = {"lossless": True, "quality": 50} if path.suffix == ".webp" else {}
    with whole_file(path) as file:
        frames[0].save(
            file,
            path.suffix[1:].upper(),
            save_all=True,
            append_images=list(frames[1:]),
            duration=durations,
            loop=0,
            **options,
        )


def shown(count: int, most: int) -> list[int]:
    """Choose at most so many of a row of things, evenly, the first and the last among them."""
    return sorted({round(i) for i in np.linspace(0, count - 1, most)})
