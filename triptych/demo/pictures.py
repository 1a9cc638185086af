"""Pictures of the page: read from what a browser sends, shown as addresses that hold the picture itself; nothing is stored."""

from __future__ import annotations

import base64
import binascii
import io
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

from files.images import DECODING_ERRORS, Picture, read_picture, reason
from files.pixels import seen, to_pixels
from launch.errors import UserError

MAX_BYTES = 10_000_000  # of a picture that is dropped
MAX_SIDE = 256  # px: larger pictures are shrunk to it
HEAT = "magma"  # grows in brightness, so that it is read in grey, too


def address(picture: Image.Image, kind: str = "PNG", **options: Any) -> str:
    """Return a ``data:`` address that holds a picture."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def image_address(image_CHW: Tensor) -> str:
    """Return a ``data:`` address of a (C, H, W) image in [-1, 1]."""
    return address(Image.fromarray(to_pixels(image_CHW, np.uint8)))


def received(source: Any) -> Picture:
    """Read a picture that a browser sent.

    Args:
        source: Its ``data:`` address.

    Returns:
        The picture in 8 bits, transparent parts over white, at most ``MAX_SIDE`` pixels wide and high.

    Raises:
        UserError: There is none, or it is too large or no picture.
    """
    picture = _read(source)
    flat = picture.shown(1 if picture.pixels.ndim == 2 else 3)
    flat.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return Picture(np.asarray(flat))


def _read(source: Any) -> Picture:
    if not isinstance(source, str) or not source.startswith("data:"):
        raise UserError("There is no picture yet: drop one, or take one of the test images.")
    if len(source) * 3 // 4 > MAX_BYTES:
        raise UserError(f"The file is larger than {MAX_BYTES // 10**6} MB: take a smaller one.")
    try:
        return read_picture(io.BytesIO(base64.b64decode(source.partition(",")[2], validate=True)))
    except (*DECODING_ERRORS, binascii.Error) as error:
        raise UserError(f"The file cannot be used as a picture: {reason(error)}.") from error


def received_hole(source: Any, picture: Picture) -> np.ndarray:
    """Read a hole that was drawn on a picture.

    Args:
        source: ``data:`` address of a picture of the same size, opaque where pixels are missing.

    Returns:
        (H, W) bool, True where they are.

    Raises:
        UserError: Nothing was drawn, or it is of another size.
    """
    if not isinstance(source, str) or not source.startswith("data:"):
        raise UserError("There is no hole yet: draw one on the picture.")
    drawn = _read(source)
    missing = np.ones(drawn.pixels.shape[:2], bool) if drawn.alpha is None else drawn.alpha > 127
    if missing.shape != picture.pixels.shape[:2] or not missing.any():
        raise UserError("There is no hole yet: draw one on the picture.")
    if missing.all():
        raise UserError("The hole is the whole picture: leave something of it.")
    return missing


def as_image(picture: Picture) -> Tensor:
    """Return the (C, H, W) image in [-1, 1] of a picture, C 1 or 3."""
    return seen(picture, 1 if picture.pixels.ndim == 2 else 3).flatten(0, 1)


def spread_map(samples: list[Tensor]) -> tuple[str, int]:
    """Draw how far samples are from each other.

    Args:
        samples: (C, H, W) images in [-1, 1], two or more.

    Returns:
        Address of a heat map, its lightest colour the largest standard deviation of a pixel, and that in grey levels of 255.
    """
    spread_HW = torch.stack(samples).std(0).mean(0)
    largest = float(spread_HW.max())
    colours = colormaps[HEAT](spread_HW.numpy() / max(largest, 1e-6), bytes=True)[..., :3]
    return address(Image.fromarray(np.ascontiguousarray(colours))), round(largest * 255 / 2)
