"""Image files that appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from files.whole import whole_file


def write_image(image_CHW: Tensor, path: Path) -> None:
    """Write an image in the format that the file's name says.

    Args:
        image_CHW: (C, H, W) image in [-1, 1], grey or RGB.
        path: File to write; its folder is created.
    """
    pixels = ((image_CHW.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()
    with whole_file(path) as file:
        to_pil_image(pixels).save(file, format=Image.registered_extensions()[path.suffix.lower()], quality=95)
