"""Pictures as a person has them, and answers as a person wants them: files, images of Pillow, arrays, tensors."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from files.images import DECODING_ERRORS, Picture, picture_of, read_picture, reason
from files.masks import HoleRule, MaskError, hole_rule, mask_of
from files.pixels import drawn, fill, seen, to_pixels
from launch.errors import UserError, as_user_error
from launch.paths import typed_path

PictureLike = str | Path | Image.Image | np.ndarray | Tensor
Kind = Literal["pil", "numpy", "torch"]
FARTHEST = 1.5  # of the values of clean tensors: what lies farther out has another range, as 0 to 255


def check_kind(kind: str, number: int = 0) -> None:
    if kind not in get_args(Kind):
        raise UserError(f"kind={kind} must be one of {', '.join(get_args(Kind))}.")
    if not isinstance(number, Integral) or number < 0:
        raise UserError(f"{number} images cannot be made: ask for a whole number, 0 or more.")


def check_seed(seed: int | None) -> None:
    if seed is not None and (not isinstance(seed, Integral) or seed < 0):
        raise UserError(f"seed={seed} must be a whole number, 0 or more.")


def read_given(given: PictureLike, is_clean: bool = False) -> Picture:
    """Read a picture.

    Args:
        is_clean: Whether nothing may have led its values out of [-1, 1], as noise does.

    Raises:
        UserError: It is none, or a tensor of another range.
    """
    if isinstance(given, Tensor):
        return _of_tensor(given.detach().cpu(), is_clean)
    if not isinstance(given, PictureLike):
        raise UserError(f"{type(given).__name__} is no picture: give one file, image of Pillow, array or tensor.")
    name = str(given) if isinstance(given, str | Path) else "the picture"
    try:
        if isinstance(given, str | Path):
            return read_picture(typed_path("picture", given))
        return picture_of(given if isinstance(given, Image.Image) else Image.fromarray(given))
    except (*DECODING_ERRORS, TypeError) as error:
        raise UserError(f"{name} cannot be used: {reason(error)}.") from error


def _of_tensor(image: Tensor, is_clean: bool) -> Picture:
    if image.ndim != 3 or len(image) not in (1, 3) or not image.numel() or not image.is_floating_point():
        raise UserError(
            f"a tensor of shape {tuple(image.shape)} is no picture: give (C, H, W) floats in [-1, 1], C 1 or 3."
        )
    image = image.float()
    if not image.isfinite().all():
        raise UserError("a tensor with values that are no numbers is no picture: what made it diverged.")
    low, high = float(image.min()), float(image.max())
    # Noise leads out of the range on both sides: what is never below 0 and yet far above 1 has levels of a file.
    if (is_clean and max(-low, high) > FARTHEST) or (low >= 0 and high > 2 * FARTHEST):
        raise UserError(
            f"a tensor of values from {low:g} to {high:g} is no picture: give floats in [-1, 1], as image / 127.5 - 1."
        )
    return Picture(to_pixels(image, np.uint16 if len(image) == 1 else np.uint8), exact=image.numpy())


def _missing(hole: PictureLike, rule: HoleRule) -> Tensor:
    missing = (
        torch.from_numpy(np.ascontiguousarray(hole)) if isinstance(hole, np.ndarray) and hole.dtype == bool else hole
    )
    if isinstance(missing, Tensor) and missing.dtype == torch.bool:
        missing = missing.cpu()
        if not missing.any() or missing.ndim != 2:
            raise MaskError("the hole must be (H, W) bool, True where pixels are missing, and somewhere it must be.")
        return missing
    return torch.from_numpy(mask_of(read_given(hole), "the hole", hole_rule(rule)).missing)


def missing_of(own: Picture, hole: PictureLike, marked: HoleRule) -> Tensor:
    with as_user_error():
        missing = _missing(hole, marked)
    if missing.shape != own.pixels.shape[:2]:
        height, width = missing.shape
        raise UserError(
            f"the hole has {width}x{height} pixels and the picture {own.size[0]}x{own.size[1]}: give both one size."
        )
    return missing


def plain_answer(image_RCHW: Tensor, kind: Kind) -> Any:
    """Return a picture at the training size; the rows of a colour picture are its channels."""
    image_CHW = image_RCHW.flatten(0, 1).clamp(-1, 1)
    return answer(Picture(to_pixels(image_CHW, np.uint8)), image_CHW[None], None, kind)


def answer(own: Picture, image_RCHW: Tensor, missing: Tensor | None, kind: Kind) -> Any:
    if kind == "torch":
        known_RCHW = image_RCHW if missing is None else seen(own, image_RCHW.shape[1])
        return (image_RCHW if missing is None else torch.where(missing, image_RCHW, known_RCHW)).flatten(0, 1)
    result = drawn(own, image_RCHW) if missing is None else fill(own, missing.numpy(), image_RCHW)
    return result.image if kind == "pil" else np.asarray(result.image)
