"""Single test images in a folder: ``<output>/<index>.png`` pixel for pixel, and ``images.json``, which says what they are.

Images of the same name are of the same case in all runs on the same data and degradation, so that runs can be laid side by
side after the fact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from files.grids import write_png
from files.pixels import to_pixels
from files.whole import whole_file

LIST_NAME = "images.json"


def write_single_images(
    folder: Path,
    images: Mapping[str, Tensor],
    indices: Sequence[int],
    psnr: Mapping[str, Sequence[float]],
    labels: Sequence[Sequence[str]] | None,
    step: int,
) -> None:
    """Write images one by one, and last the list of them.

    Args:
        folder: Folder of the images.
        images: (N, C, H, W) images in [-1, 1], grey or RGB, by name of the output.
        indices: Indices of the N images in their split.
        psnr: PSNR in dB of each image, by name of those outputs that are of the very images.
        labels: Names of each image's labels, or None.
        step: Optimiser steps behind the weights.
    """
    for name, image_NCHW in images.items():
        for index, image_CHW in zip(indices, image_NCHW, strict=True):
            write_png(Image.fromarray(to_pixels(image_CHW, np.uint8)), path_of(folder, name, index))
    content = {
        "step": step,
        "index": list(indices),
        "outputs": list(images),
        "psnr": {name: [round(value, 3) for value in values] for name, values in psnr.items()},
        "labels": labels,
    }
    with whole_file(folder / LIST_NAME, "w") as file:
        file.write(json.dumps(content, indent=1) + "\n")


def path_of(folder: Path, output: str, index: int) -> Path:
    """Return the file of an image.

    Args:
        folder: Folder of the images.
        output: Name of the output.
        index: Index of the image in its split.
    """
    return folder / output / f"{index:06d}.png"
