"""Pictures as a person has them, and answers as a person wants them: files, images of Pillow, arrays, tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from files.images import DECODING_ERRORS, Picture, picture_of, read_picture, reason
from files.masks import HoleRule, MaskError, hole_rule, mask_of
from files.pixels import drawn, fill, seen, to_pixels
from files.words import count
from launch.errors import UserError, as_user_error
from launch.paths import typed_path

PictureLike = str | Path | Image.Image | np.ndarray | Tensor
Kind = Literal["pil", "numpy", "torch"]


def check_kind(kind: str, number: int = 0) -> None:
    if kind not in get_args(Kind):
        raise UserError(f"kind={kind} must be one of {', '.join(get_args(Kind))}.")
    if number < 0:
        raise UserError(f"{count(number, 'image')} cannot be made: ask for 0 or more.")


def read_given(given: PictureLike) -> Picture:
    if isinstance(given, Tensor):
        image = given.detach().cpu()
        if image.ndim != 3 or len(image) not in (1, 3) or not image.is_floating_point():
            raise UserError(
                f"a tensor of shape {tuple(image.shape)} is no picture: give (C, H, W) floats in [-1, 1], C 1 or 3."
            )
        return Picture(to_pixels(image, np.uint16 if len(image) == 1 else np.uint8))
    name = str(given) if isinstance(given, str | Path) else "the picture"
    try:
        if isinstance(given, str | Path):
            return read_picture(typed_path("picture", given))
        return picture_of(given if isinstance(given, Image.Image) else Image.fromarray(given))
    except (*DECODING_ERRORS, TypeError) as error:
        raise UserError(f"{name} cannot be used: {reason(error)}.") from error


def _missing(hole: PictureLike, rule: HoleRule) -> Tensor:
    if isinstance(hole, np.ndarray | Tensor) and np.asarray(hole).dtype == bool:
        missing = torch.from_numpy(np.asarray(hole))
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
