"""Image files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image


def write_image(image_CHW: Tensor, path: Path) -> None:
    """Write an image in the format that the file's name says.

    Args:
        image_CHW: (C, H, W) image in [-1, 1], grey or RGB.
        path: File to write; its folder is created.
    """
    pixels = ((image_CHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    to_pil_image(pixels).save(temporary, quality=95)
    temporary.replace(path)
