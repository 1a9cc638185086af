"""Decoding of image files for training and evaluation: complete or not at all, at a wanted size."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from lightning.pytorch.utilities import rank_zero_warn
from PIL import Image
from rich.progress import track
from torch import Tensor

from files.images import DECODING_ERRORS, NOTES, Picture, read_picture
from files.pixels import to_tensor
from files.words import count, named

_THREADS = 8  # PIL releases the global interpreter lock


def decode(file: Path | BinaryIO, channels: int, minimum_side: int, short_side: int | None = None) -> Tensor:
    """Read an image file; one that is damaged raises one of ``DECODING_ERRORS``.

    Args:
        file: The file, or its open content.
        channels: 1 for grey, 3 for RGB.
        minimum_side: A smaller image is enlarged until its short side has so many pixels.
        short_side: Resize every image to this short side, or None to keep sizes.

    Returns:
        (C, H, W) uint8 pixels.
    """
    return fitted(read_picture(file), channels, minimum_side, short_side)


def decoded(
    files: Sequence[Path], pixels_of: Callable[[Picture], Tensor]
) -> Iterator[tuple[Tensor | None, tuple[bool, ...]]]:
    """Read image files in threads.

    Yields:
        For each file, in their order, what ``pixels_of`` makes of it, or None where it cannot be decoded, and which of the
        ``NOTES`` are true of it.
    """

    def read(file: Path) -> tuple[Tensor | None, tuple[bool, ...]]:
        try:
            picture = read_picture(file)
        except DECODING_ERRORS:
            return None, (False,) * len(NOTES)
        return pixels_of(picture), tuple(picture.notes)

    with ThreadPoolExecutor(_THREADS) as pool:
        yield from track(pool.map(read, files), "Reading images", len(files), transient=True)


def fitted(picture: Picture, channels: int, minimum_side: int, short_side: int | None = None) -> Tensor:
    """Resize a picture by its short side.

    Returns:
        (C, H, W) uint8 pixels.
    """
    image = picture.shown(channels)
    shortest = min(image.size)
    wanted = max(minimum_side, short_side or shortest)
    if wanted != shortest:
        width, height = (max(wanted, round(side * wanted / shortest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return to_tensor(image)


def tell_notes(files: Sequence[Path], notes_FK: Tensor) -> None:
    """Warn once of what a person should know of how files are read.

    Args:
        files: The F files.
        notes_FK: (F, K) bool, which of the K ``NOTES`` are true of each.
    """
    for note, rows_F in zip(NOTES, notes_FK.T.tolist(), strict=True):
        if names := list(itertools.compress(files, rows_F)):
            rank_zero_warn(f"{len(names)} of {count(len(files), 'image')} {note} ({named(names)})")
