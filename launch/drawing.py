"""Draws images with a trained generator: of the labels that a person types, or of nothing but noise."""

from __future__ import annotations

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from callbacks.rendering import render_grid, write_png
from datamodules.labels import parse_labels
from generative.types import Batch
from launch.errors import UserError, as_user_error
from launch.image_files import write_image
from lightning_modules import GenerativeModule

GRID_COLUMNS = 8


def read_labels(text: str | None, label_names: list[str]) -> Tensor | None:
    """Read what a person typed.

    Args:
        text: Such as ``red cube, blue sphere``, or None.
        label_names: The labels of the run's data set, in order; empty for an unconditional run.

    Returns:
        (L,) multi-hot labels; None for an unconditional run.

    Raises:
        UserError: A label is unknown, or labels are missing or of no use.
    """
    if not label_names:
        if text is not None:
            raise UserError("this run was trained without labels: leave out labels=.")
        return None
    if text is None:
        example, choice = f'"{label_names[0]}, {label_names[-1]}"', ", ".join(label_names)
        raise UserError(f"say what to draw with labels={example}, or others of: {choice}.")
    with as_user_error():
        return parse_labels(text, tuple(label_names))


@torch.inference_mode()
def draw_images(
    module: GenerativeModule, labels_L: Tensor | None, shape: tuple[int, int, int], num_images: int, batch_size: int
) -> Tensor:
    """Draw images; image i depends on the module's evaluation seed and i alone.

    Args:
        module: Trained module on its device.
        labels_L: (L,) multi-hot labels, or None.
        shape: Channels, height and width.
        num_images: Number of images N.
        batch_size: Images at a time.

    Returns:
        (N, C, H, W) images in [-1, 1], on the CPU.
    """
    images = []
    for begin in track(range(0, num_images, batch_size), description="drawing", console=Console(stderr=True)):
        index = torch.arange(begin, min(begin + batch_size, num_images))
        batch = Batch(
            image=torch.zeros(len(index), *shape, device=module.device),
            index=index,
            labels=None if labels_L is None else labels_L.to(module.device).expand(len(index), -1),
        )
        images.append(module.sample(batch, module.evaluation_randomness(batch, "generate"))["sample"].cpu())
    return torch.cat(images)


def write_drawings(image_NCHW: Tensor, title: str, target: Path) -> None:
    """Write each image to ``0000.png``, ``0001.png``, ... and all of them to ``grid.png``.

    Args:
        image_NCHW: (N, C, H, W) images in [-1, 1].
        title: Title of the grid.
        target: Folder to write to.
    """
    for index, image in enumerate(image_NCHW):
        write_image(image, target / f"{index:04d}.png")
    columns = min(GRID_COLUMNS, len(image_NCHW))
    white = torch.ones(-len(image_NCHW) % columns, *image_NCHW.shape[1:])  # completes the last row
    rows = {f"from {i * columns}": row for i, row in enumerate(torch.cat([image_NCHW, white]).split(columns))}
    write_png(render_grid(rows, title), target / "grid.png")
    Console(stderr=True).print(f"{len(image_NCHW)} images and grid.png written to {target}", soft_wrap=True)
