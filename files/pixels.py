"""The one way between image tensors in [-1, 1] and the whole numbers of image files, 0 for black.

Shape suffixes: R rows of a batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from files.images import DEEP, Picture, write_picture

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow turns RGB into grey


def to_levels(image: Tensor, white: int = 255) -> Tensor:
    """Round images to whole numbers.

    Args:
        image: Images in [-1, 1], of any shape; what lies outside is not cut off.
        white: The number that stands for white.

    Returns:
        Whole numbers as floats of the same type.
    """
    return ((image + 1) * (white / 2)).round()


def from_levels(levels: Tensor) -> Tensor:
    """Return images of whole numbers of 8 bits.

    Args:
        levels: Whole numbers in [0, 255], of any type and shape.

    Returns:
        Float images in [-1, 1].
    """
    return levels.float() / 127.5 - 1


def to_bytes(image: Tensor) -> Tensor:
    """Round images to 8 bits.

    Args:
        image: Images in [-1, 1], of any shape; what lies outside is cut off.

    Returns:
        The same as uint8, half a step rounded to the even number.
    """
    return to_levels(image.float().clamp(-1, 1)).byte()


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels of an image.

    Args:
        image: Image of the mode ``L`` or ``RGB``.

    Returns:
        (C, H, W) uint8 pixels.
    """
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()


def write_image(image_CHW: Tensor, path: Path, replace: bool = True, software: str | None = None) -> None:
    """Write an image in the format that the file's name says.

    Args:
        image_CHW: (C, H, W) image in [-1, 1], grey or RGB.
        path: File to write; its folder is created.
        replace: Whether a file that is there may be replaced.
    """
    write_picture(Picture(to_pixels(image_CHW, np.uint8)), path, replace, software)


def check_numbers(image: Tensor) -> None:
    """Check that a file can hold an image.

    Raises:
        ValueError: Some values are no numbers, which a file would show as black.
    """
    if not image.isfinite().all():
        raise ValueError(
            "An image holds values that are no numbers, which a file would show as black: what made it diverged."
        )


def to_pixels(image_CHW: Tensor, kind: type[np.unsignedinteger] | np.dtype) -> np.ndarray:
    """Round an image to the values of files.

    Args:
        image_CHW: (C, H, W) image in [-1, 1], grey or RGB.
        kind: uint8 or uint16.

    Returns:
        (H, W) or (H, W, 3) values from 0, black, to the largest one, white.

    Raises:
        ValueError: Some values are no numbers.
    """
    check_numbers(image_CHW)
    white = int(np.iinfo(kind).max)  # channel by channel: a photograph is large, and so is each intermediate result
    values = [to_levels(image_HW.float().clamp(-1, 1), white).cpu().numpy().astype(kind) for image_HW in image_CHW]
    return values[0] if len(values) == 1 else np.stack(values, axis=-1)


def in_own_channels(picture: Picture) -> Tensor:
    """Return a picture as it is seen, transparent parts over white.

    Returns:
        (1, C, H, W) image in [-1, 1], C 1 of a grey picture and 3 of one in colour. Grey of 16 bits keeps them, and
        ``picture.exact`` is returned as it is.
    """
    if picture.exact is not None:
        return torch.from_numpy(picture.exact)[None]
    grey = picture.pixels.ndim == 2
    if picture.pixels.dtype == np.uint8:
        return from_levels(to_tensor(picture.shown(1 if grey else 3)))[None]
    return torch.from_numpy(picture.pixels.astype(np.float32))[None, None] / (DEEP / 2) - 1


def as_rows(image_1CHW: Tensor, channels: int) -> Tensor:
    """Return a picture in channels of its own as a network of some channels takes it.

    Args:
        image_1CHW: See ``in_own_channels``.
        channels: 1 or 3. One channel at a time sees each of a colour picture's; three see a grey one thrice.

    Returns:
        (R, channels, H, W) images: 3 rows of a colour picture for a grey network, else 1.
    """
    return image_1CHW.transpose(0, 1) if channels == 1 else image_1CHW.expand(-1, channels, -1, -1)


def as_grey(image_CHW: Tensor) -> Tensor:
    """Return the luma of an image.

    Args:
        image_CHW: (C, H, W) image in [-1, 1], grey or RGB.

    Returns:
        (1, H, W) image; a grey one is returned as it is.
    """
    if len(image_CHW) == 1:
        return image_CHW
    return (image_CHW * image_CHW.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)


def seen(picture: Picture, channels: int) -> Tensor:
    """Return a picture as a network takes it: ``as_rows`` of ``in_own_channels``."""
    return as_rows(in_own_channels(picture), channels)


def drawn(picture: Picture, image_RCHW: Tensor) -> Picture:
    """Return a picture with other pixels and all else as it is: its bits, opacity, profile and metadata; grey stays grey.

    Half transparent pixels change by so much that they are seen over white as was drawn; those that nobody sees stay.

    Args:
        picture: A picture.
        image_RCHW: (R, C, H, W) images in [-1, 1] of the picture's size, with rows as of ``seen``.
    """
    pixels, alpha = _pixels(picture, image_RCHW), picture.alpha
    if alpha is None:
        return replace(picture, pixels=pixels, exact=None)
    own, white = picture.pixels.astype(np.float32), np.iinfo(pixels.dtype).max
    before = _pixels(picture, in_own_channels(picture))
    opacity = alpha if own.ndim == 2 else alpha[..., None]
    change = (pixels.astype(np.float32) - before) * 255 / np.maximum(opacity, 1)
    made = np.where(opacity > 0, own + change, own).round().clip(0, white)
    return replace(picture, pixels=made.astype(pixels.dtype), exact=None)


def _pixels(picture: Picture, image_RCHW: Tensor) -> np.ndarray:
    """Values of images of a picture's size in its channels and bits."""
    image_CHW = image_RCHW.float().cpu().flatten(0, 1)
    return to_pixels(as_grey(image_CHW) if picture.pixels.ndim == 2 else image_CHW, picture.pixels.dtype)


def fill(picture: Picture, missing: np.ndarray, image_RCHW: Tensor) -> Picture:
    """Put what a module drew into the hole of a picture; all else stays as it is in the file.

    Args:
        picture: The picture, of any size.
        missing: (H, W) bool at the picture's size.
        image_RCHW: See ``drawn``.

    Returns:
        The picture with its own size, channels and bits; opaque where it was filled.
    """
    new = _pixels(picture, image_RCHW)
    pixels = np.where(missing if new.ndim == 2 else missing[..., None], new, picture.pixels)
    alpha = None if picture.alpha is None else np.where(missing, np.uint8(255), picture.alpha)
    return replace(picture, pixels=pixels, alpha=alpha, exact=None)
