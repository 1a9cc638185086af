"""Pictures that a module returns, as files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from files.images import Picture, write_picture

SOFTWARE = "Triptych generate.py"
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns RGB into grey


def say(line: str) -> None:
    """Print a line for a person, whatever is in the names that it holds."""
    Console(stderr=True).print(line, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def told_when_stopped(written: Sequence[Path], num_images: int, target: Path) -> Iterator[None]:
    """Say what is there already where an error or a signal ends a call.

    Args:
        written: The files that are written, which grow meanwhile.
        num_images: How many it was to be.
        target: Their folder.
    """
    try:
        yield
    except BaseException:
        if written:
            say(f"{len(written)} of {num_images} images were written to {target} before this; they are whole")
        raise


def write_image(image_CHW: Tensor, path: Path, replace: bool = True) -> None:
    """Write an image in the format that the file's name says.

    Args:
        image_CHW: (C, H, W) image in [-1, 1], grey or RGB.
        path: File to write; its folder is created.
        replace: Whether a file that is there may be replaced.
    """
    write_picture(Picture(to_pixels(image_CHW, np.uint8)), path, replace, SOFTWARE)


def to_pixels(image_CHW: Tensor, kind: type[np.unsignedinteger] | np.dtype) -> np.ndarray:
    """Round an image to the values of files.

    Args:
        image_CHW: (C, H, W) image in [-1, 1], grey or RGB.
        kind: uint8 or uint16.

    Returns:
        (H, W) or (H, W, 3) values from 0, black, to the largest one, white.
    """
    white = int(np.iinfo(kind).max)
    values = ((image_CHW.float() + 1) * (white / 2)).round().clamp(0, white).cpu().numpy().astype(kind)
    return values[0] if len(values) == 1 else np.ascontiguousarray(values.transpose(1, 2, 0))


def fill(picture: Picture, missing: np.ndarray, image_CHW: Tensor) -> Picture:
    """Put what a module drew into the hole of a picture; all else stays as it is in the file.

    Args:
        picture: The picture, of any size.
        missing: (H, W) bool at the picture's size.
        image_CHW: (C, S, S) image in [-1, 1]; it is enlarged or reduced to the picture's size, and becomes grey or RGB as the
            picture is.

    Returns:
        The picture with its own size, channels and bits; opaque where it was filled.
    """
    image_CHW = image_CHW.float().cpu()
    if image_CHW.shape[1:] != missing.shape:
        image_CHW = F.interpolate(image_CHW[None], missing.shape, mode="bicubic", antialias=True)[0]
    is_grey = picture.pixels.ndim == 2
    if is_grey and len(image_CHW) == 3:
        image_CHW = (image_CHW * image_CHW.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
    elif not is_grey:
        image_CHW = image_CHW.expand(3, -1, -1)
    drawn = to_pixels(image_CHW, picture.pixels.dtype)
    pixels = np.where(missing if is_grey else missing[..., None], drawn, picture.pixels)
    alpha = None if picture.alpha is None else np.where(missing, np.uint8(255), picture.alpha)
    return Picture(pixels, alpha, icc_profile=picture.icc_profile)
