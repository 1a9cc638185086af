"""Decoding of image files, complete or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


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
    with Image.open(file) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit grey, which convert would clip to white
            image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
        image = image.convert("L" if channels == 1 else "RGB")
    shortest = min(image.size)
    wanted = max(minimum_side, short_side or shortest)
    if wanted != shortest:
        width, height = (max(wanted, round(side * wanted / shortest)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()
