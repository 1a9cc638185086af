"""Image grids: what a module restores or generates, as captioned PNG files and in the loggers.

Shape suffixes: N images, C channels, H height, W width.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from generative.metrics.restoration import psnr
from generative.types import Batch

CELL_SIZE = 96  # px: small images are enlarged to about this height
MARGIN, GAP = 16, 6  # px
CAPTION_SIZE, NOTE_SIZE = 15, 12  # px, letter heights
BACKGROUND, INK, FAINT_INK = (255, 255, 255), (32, 32, 32), (112, 112, 112)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # only its fonts; imported late because it is slow to load

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def _to_pil(image_CHW: Tensor, scale: int) -> Image.Image:
    bytes_CHW = ((image_CHW.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    if len(bytes_CHW) == 1:
        bytes_CHW = bytes_CHW.expand(3, -1, -1)
    image = Image.fromarray(bytes_CHW.permute(1, 2, 0).contiguous().numpy())
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def render_grid(
    rows: Mapping[str, Tensor],
    title: str = "",
    column_captions: Sequence[str] = (),
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Image.Image:
    """Draw rows of images with captions; small images are enlarged by whole pixels.

    Args:
        rows: (N, C, H, W) images in [-1, 1] by caption, grey or RGB, all of the same shape; top row first.
        title: Line above the grid.
        column_captions: Caption of each of the N columns; none by default.
        notes: Short text under each of the N images of a row, by the row's caption; it may have several lines.

    Returns:
        An RGB image.

    Raises:
        ValueError: If there is no image, or the rows differ in shape.
    """
    shapes = {tuple(images.shape) for images in rows.values()}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"A grid needs images of one shape in all rows, got {shapes}.")
    num_columns, _, height, width = shapes.pop()
    notes = notes or {}
    scale = max(1, round(CELL_SIZE / height))
    cell_width, cell_height = width * scale, height * scale
    caption_font, note_font = _font(CAPTION_SIZE), _font(NOTE_SIZE)

    left = MARGIN + int(max(caption_font.getlength(caption) for caption in rows)) + MARGIN
    header = MARGIN + (CAPTION_SIZE + MARGIN if title else 0) + (NOTE_SIZE + GAP if column_captions else 0)
    lines = {caption: [text.split("\n") for text in texts] for caption, texts in notes.items()}
    num_lines = {caption: max(map(len, texts), default=0) for caption, texts in lines.items()}
    row_heights = [cell_height + GAP + (NOTE_SIZE + GAP) * num_lines.get(caption, 0) for caption in rows]
    note_widths = [round(note_font.getlength(line)) for texts in lines.values() for text in texts for line in text]
    pitch = max([cell_width, *note_widths]) + GAP
    size = (left + num_columns * pitch - GAP + MARGIN, header + sum(row_heights) - GAP + MARGIN)
    grid = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(grid)

    if title:
        draw.text((MARGIN, MARGIN), title, INK, caption_font, anchor="lt")
    lefts = [left + column * pitch + (pitch - GAP - cell_width) // 2 for column in range(num_columns)]
    for x, text in zip(lefts, column_captions, strict=False):
        draw.text((x + cell_width // 2, header - GAP), text, FAINT_INK, note_font, anchor="ms")
    top = header
    for (caption, images), row_height in zip(rows.items(), row_heights, strict=True):
        draw.text((left - MARGIN, top + cell_height // 2), caption, INK, caption_font, anchor="rm")
        for x, image in zip(lefts, images, strict=True):
            grid.paste(_to_pil(image, scale), (x, top))
        for x, note in zip(lefts, lines.get(caption, ()), strict=False):
            for number, line in enumerate(note):
                y = top + cell_height + GAP // 2 + number * (NOTE_SIZE + GAP)
                draw.text((x + cell_width // 2, y), line, FAINT_INK, note_font, anchor="mt")
        top += row_height
    return grid


def write_png(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all.

    Args:
        image: The image.
        path: File to write; its folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    image.save(temporary, format="PNG")
    temporary.replace(path)


class PeriodicGrid(Callback, ABC):
    """Draws a grid of the first images of a split to ``<run>/images/<key>/step=*.png``; a kind of grid adds ``grid``.

    The images come with the draws that evaluation gives them, so grids of different steps and runs show the same cases,
    with the EMA weights where there is an EMA callback. A grid is drawn at an early step, at each interval, at the end of
    the fit, and (first test images, key ``test`` or ``<key>_test``) at the end of the test.

    Args:
        num_images: Images to show; fewer where the split is smaller.
        every_n_steps: Interval in optimiser steps.
        first_step: Step of the early grid, which shows that the run does what it should.
        split: ``train``, ``val`` or ``test``.
        key: Folder of the files and name in the loggers.
        test_key: The same for the grid at the end of the test.

    Raises:
        ValueError: If there is no image or no interval.

    Attributes:
        last_step: Step of the last grid of the fit; -1 before.
    """

    def __init__(
        self, num_images: int, every_n_steps: int, first_step: int, split: str, key: str, test_key: str = "test"
    ) -> None:
        if min(num_images, every_n_steps) < 1:
            raise ValueError("callbacks.image_grid.num_images and every_n_steps must be at least 1.")
        self.num_images = num_images
        self.every_n_steps = every_n_steps
        self.first_step = first_step
        self.split = split
        self.key = key
        self.test_key = test_key
        self.last_step = -1

    @abstractmethod
    def grid(self, trainer: Trainer, module: LightningModule, batch: Batch, split: str, step: int) -> Image.Image:
        """Draw the grid.

        Args:
            trainer: The trainer.
            module: The module.
            batch: The images.
            split: Where they come from.
            step: Optimiser steps behind the weights.

        Returns:
            An RGB image.
        """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw at the early step and at each interval."""
        step = trainer.global_step
        if step == self.first_step or step % self.every_n_steps == 0:
            self._draw_in_fit(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what the final weights make."""
        self._draw_in_fit(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the first test images."""
        self._draw(trainer, pl_module, "test", self.test_key)

    def _draw_in_fit(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self.last_step:
            return
        self.last_step = trainer.global_step
        self._draw(trainer, module, self.split, self.key)

    def _draw(self, trainer: Trainer, module: LightningModule, split: str, key: str) -> None:
        if not trainer.is_global_zero:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        num_images = min(self.num_images, len(getattr(data.splits, split)))
        batch = data.batch(split, range(num_images), module.device)
        step = trained_steps(trainer, module)
        keep_image(trainer, key, self.grid(trainer, module, batch, split, step), step)


class ImageGrid(PeriodicGrid):
    """Rows of clean, degraded and restored images with their PSNR, or of data and generated images.

    Args:
        num_images: Columns.
        every_n_steps: See ``PeriodicGrid``.
        first_step: See ``PeriodicGrid``.
        split: See ``PeriodicGrid``.
        key: See ``PeriodicGrid``.
    """

    def __init__(
        self,
        num_images: int = 8,
        every_n_steps: int = 500,
        first_step: int = 20,
        split: str = "val",
        key: str = "restoration",
    ) -> None:
        super().__init__(num_images, every_n_steps, first_step, split, key)

    def grid(self, trainer: Trainer, module: LightningModule, batch: Batch, split: str, step: int) -> Image.Image:
        """See ``PeriodicGrid.grid``."""
        paradigm: Any = module
        with evaluating(trainer, module):
            outputs = dict(paradigm.sample(batch, paradigm.evaluation_randomness(batch)))
        captions = [f"{split} {index}" for index in batch.index.tolist()]
        title = f"{split} images · step {step:,}"
        if batch.degraded is None:
            return render_grid({"data": batch.image} | outputs, title, captions)
        images = {"clean": batch.image, "degraded": batch.degraded} | outputs
        notes = {
            name: [f"{value:.1f} dB" for value in psnr(image, batch.image).tolist()]
            for name, image in images.items()
            if name != "clean"
        }
        return render_grid(images, f"{title} · PSNR under each image", captions, notes)


class DenoisingGrid(PeriodicGrid):
    """The images over the denoising steps: under each state of the sampler the estimate of the image at that step.

    Needs a module with ``denoising_states``.

    Args:
        num_images: Images to show, two rows each.
        num_columns: Steps to show, first and last included.
        every_n_steps: See ``PeriodicGrid``.
        first_step: See ``PeriodicGrid``.
        split: See ``PeriodicGrid``.
        key: See ``PeriodicGrid``.
    """

    def __init__(
        self,
        num_images: int = 3,
        num_columns: int = 10,
        every_n_steps: int = 500,
        first_step: int = 20,
        split: str = "val",
        key: str = "denoising",
    ) -> None:
        super().__init__(num_images, every_n_steps, first_step, split, key, f"{key}_test")
        self.num_columns = num_columns

    def grid(self, trainer: Trainer, module: LightningModule, batch: Batch, split: str, step: int) -> Image.Image:
        """See ``PeriodicGrid.grid``."""
        paradigm: Any = module
        with evaluating(trainer, module):
            states = list(paradigm.denoising_states(batch, paradigm.evaluation_randomness(batch)))
        shown = sorted({round(i) for i in np.linspace(0, len(states) - 1, self.num_columns)})
        rows: dict[str, Tensor] = {}
        for row, index in enumerate(batch.index.tolist()):
            rows[f"{split} {index}"] = torch.stack([states[i].z[row] for i in shown])
            rows[f"estimate {index}"] = torch.stack([states[i].image[row] for i in shown])
        captions = [f"{i + 1} of {len(states)}" for i in shown]
        return render_grid(rows, f"denoising steps · {split} images · training step {step:,}", captions)


def trained_steps(trainer: Trainer, module: LightningModule) -> int:
    """Return the optimiser steps behind the module's weights.

    Args:
        trainer: The trainer; one that only tests has no step of its own.
        module: The module.

    Returns:
        Number of steps.
    """
    return trainer.global_step or getattr(module, "trained_steps", 0)


@contextmanager
def evaluating(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Sample with the EMA weights in evaluation mode, without gradients, and leave the module as it was.

    Args:
        trainer: The trainer, whose callbacks hold the EMA.
        module: The module.

    Yields:
        Nothing.
    """
    ema = next((callback for callback in trainer.callbacks if hasattr(callback, "swapped")), None)  # type: ignore[attr-defined]
    # Each sub-module's own mode is kept: a frozen one inside a training module stays in evaluation mode.
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        with (
            torch.no_grad(),
            trainer.precision_plugin.forward_context(),
            ema.swapped(module) if ema else nullcontext(),
        ):
            yield
    finally:
        for child, mode in modes:
            child.training = mode


def keep_image(trainer: Trainer, key: str, image: Image.Image, step: int) -> None:
    """Write an image to ``<run>/images/<key>/step=*.png`` and hand it to the loggers.

    Args:
        trainer: The trainer of the run.
        key: Folder of the file and name in the loggers.
        image: The image.
        step: Optimiser steps behind it.
    """
    write_png(image, Path(trainer.default_root_dir) / "images" / key / f"step={step:08d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"images/{key}", [image], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"images/{key}", np.asarray(image), step, dataformats="HWC")
