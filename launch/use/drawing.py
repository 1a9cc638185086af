"""Draws images with a trained generator: of the labels that a person types, or of nothing but noise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from datamodules.labels import parse_labels
from files.grids import picture_grid, write_png
from files.images import named, software_of
from files.pixels import write_image
from generative.types import Batch
from launch.errors import UserError, as_user_error
from launch.use.messages import SOFTWARE, say, told_when_stopped
from launch.use.restorer import within_memory
from lightning_modules import GenerativeModule

GRID, GRID_IMAGES = "grid.png", 1000
NUMBERED = re.compile(r"(\d{4,}|grid)\.png")


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


def draw_images(
    module: GenerativeModule, labels_L: Tensor | None, shape: tuple[int, int, int], num_images: int, batch_size: int
) -> Iterator[Tensor]:
    """Draw images; image i depends on the module's evaluation seed and i alone.

    Args:
        module: Trained module on its device.
        labels_L: (L,) multi-hot labels, or None.
        shape: Channels, height and width.
        num_images: Number of images.
        batch_size: Images at a time.

    Yields:
        (B, C, H, W) images in [-1, 1], on the CPU.
    """
    for begin in track(range(0, num_images, batch_size), description="drawing", console=Console(stderr=True)):
        index = torch.arange(begin, min(begin + batch_size, num_images))
        with within_memory(batch_size), torch.inference_mode():
            batch = Batch(
                image=torch.zeros(len(index), *shape, device=module.device),
                index=index,
                labels=None if labels_L is None else labels_L.to(module.device).expand(len(index), -1),
            )
            drawn = module.images_of(batch, module.evaluation_randomness(batch, "generate"))["sample"].cpu()
        yield drawn


def drawing_name(index: int) -> str:
    """Return the name of a drawing's file.

    Args:
        index: Number of the image.

    Returns:
        ``0000.png``, ``0001.png``, ...
    """
    return f"{index:04d}.png"


def earlier_drawings(target: Path, num_images: int, overwrite: bool) -> list[Path]:
    """Find what would be mixed with new drawings.

    Args:
        target: Folder to write to.
        num_images: Number of new drawings.
        overwrite: Whether earlier drawings may be replaced.

    Returns:
        The earlier drawings that no new one will replace.

    Raises:
        UserError: There are earlier drawings and they may not be replaced, or files of such names that are none.
    """
    if target.exists() and not target.is_dir():
        raise UserError(f"output={target} is no folder: choose another name.")
    there = sorted(p for p in target.iterdir() if NUMBERED.fullmatch(p.name)) if target.is_dir() else []
    if there and not overwrite:
        raise UserError(
            f"output={target} holds drawings already ({named(p.name for p in there)}): choose another folder, or replace them "
            "with overwrite=true."
        )
    new = {drawing_name(index) for index in range(num_images)} | {GRID}
    stale = [path for path in there if path.name not in new]
    if strangers := [path.name for path in stale if software_of(path) != SOFTWARE]:
        raise UserError(
            f"output={target} holds numbered pictures that are no drawings of this script ({named(strangers)}): choose "
            "another folder."
        )
    return stale


def write_drawings(
    images: Iterable[Tensor], num_images: int, title: str, target: Path, stale: Sequence[Path], overwrite: bool
) -> None:
    """Write each image to ``0000.png``, ``0001.png``, ... and the first ones to ``grid.png``.

    Args:
        images: Batches of (B, C, H, W) images in [-1, 1].
        num_images: Number of images in all.
        title: Title of the grid.
        target: Folder to write to.
        stale: Earlier drawings, removed before the first new one is written.
        overwrite: Whether others may be replaced.
    """
    shown: list[Tensor] = []
    written: list[Path] = []
    with told_when_stopped(written, num_images, target):
        for batch in images:
            for path in stale:
                path.unlink(missing_ok=True)
            for image in batch:
                write_image(image, target / drawing_name(len(written)), overwrite, SOFTWARE)
                written.append(target / drawing_name(len(written)))
            shown += batch[: GRID_IMAGES - len(shown)]
    write_png(picture_grid(torch.stack(shown), title), target / GRID)
    few = f" (of the first {GRID_IMAGES})" if num_images > GRID_IMAGES else ""
    say(f"{num_images} images and {GRID}{few} written to {target}")
