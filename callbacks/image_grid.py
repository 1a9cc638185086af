"""Image grids: what a module restores or generates, as captioned PNG files, in the loggers and, in test, image by image."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from datamodules.base import datamodule_of
from datamodules.splits import Split
from files.grids import render_grid, write_png
from files.single_images import write_single_images
from generative.checks import checked
from generative.metrics.restoration import psnr
from generative.ranges import Count
from generative.types import Batch
from lightning_modules.contract import ANSWERING
from lightning_modules.sharding import is_sharded


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

    Attributes:
        last_step: Step of the last grid of the fit; before, the step that it began at.
    """

    def __init__(
        self, num_images: int, every_n_steps: int, first_step: int, split: Split, key: str, test_key: str = "test"
    ) -> None:
        self.num_images = num_images
        self.every_n_steps = every_n_steps
        self.first_step = first_step
        self.split = split
        self.key = key
        self.test_key = test_key
        self.last_step = -1

    @abstractmethod
    def grid(
        self, trainer: Trainer, module: LightningModule, batch: Batch, split: Split, step: int
    ) -> Image.Image | None:
        """Draw the grid.

        Args:
            batch: The images.
            split: Where they come from.
            step: Optimiser steps behind the weights.

        Returns:
            An RGB image; None where the module has nothing to show.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self.first_step or step % self.every_n_steps == 0:
            self._draw_in_fit(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw_in_fit(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module, "test", self.test_key)

    def _draw_in_fit(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step == self.last_step:
            return
        self.last_step = trainer.global_step
        self._draw(trainer, module, self.split, self.key)

    def _draw(self, trainer: Trainer, module: LightningModule, split: Split, key: str) -> None:
        # In a fit sharded weights are gathered by all ranks together: each draws then, and rank 0 keeps the picture.
        together = not trainer.testing and is_sharded(module.network)  # type: ignore[arg-type]
        if not (trainer.is_global_zero or together) or not hasattr(module, "images_of"):
            return  # another rank draws, or the module makes no images
        data = datamodule_of(trainer)
        num_images = min(self.num_images, len(getattr(data.splits, split)))
        batch = data.batch(split, range(num_images), module.device)
        step = trained_steps(trainer, module)
        image = self.grid(trainer, module, batch, split, step)
        if trainer.is_global_zero and image is not None:
            keep_image(trainer, key, image, step)


@checked("callbacks.image_grid")
class ImageGrid(PeriodicGrid):
    """Rows of clean, degraded and restored images or of images and their reconstructions, with PSNR; or of data and drawings.

    In test the images are kept one by one as well, for comparisons (see ``files.single_images``).

    Args:
        num_images: Columns.
    """

    def __init__(
        self,
        num_images: Count = 8,
        every_n_steps: Count = 500,
        first_step: int = 20,
        split: Split = "val",
        key: str = "restoration",
    ) -> None:
        super().__init__(num_images, every_n_steps, first_step, split, key)

    def grid(
        self, trainer: Trainer, module: LightningModule, batch: Batch, split: Split, step: int
    ) -> Image.Image | None:
        paradigm: Any = module
        with evaluating(trainer, module):
            outputs = dict(paradigm.images_of(batch, paradigm.evaluation_randomness(batch)))
        told = tell_diverged(trainer, module, self.test_key if trainer.testing else self.key, outputs)
        outputs = {name: images for name, images in outputs.items() if name not in told}
        if not outputs:
            return None
        captions = [f"{split} {index}" for index in batch.index.tolist()]
        title = f"{split} images · step {step:,}"
        if batch.degraded is None or not paradigm.current_tasks & {"restore", "inpaint"}:
            images, measured = (
                {"data": batch.image} | outputs,
                set(outputs) if paradigm.current_tasks & ANSWERING else set(),
            )
        else:
            images = {"clean": batch.image, "degraded": batch.degraded} | outputs
            measured = images.keys() - {"clean"}
        values = {name: psnr(images[name], batch.image).tolist() for name in measured}
        if split == "test" and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "images" / self.test_key
            names = datamodule_of(trainer).label_names
            labels = None
            if batch.labels is not None and names:
                labels = [[names[i] for i in row.nonzero().flatten().tolist()] for row in batch.labels > 0]
            write_single_images(folder, images, batch.index.tolist(), values, labels, step)
        notes = {name: [f"{value:.1f} dB" for value in each] for name, each in values.items()}
        return render_grid(images, f"{title} · PSNR under each image" if notes else title, captions, notes)


def trained_steps(trainer: Trainer, module: LightningModule) -> int:
    """Return the optimiser steps behind the module's weights.

    Args:
        trainer: The trainer; one that only tests has no step of its own.

    Returns:
        Number of steps.
    """
    return trainer.global_step or getattr(module, "trained_steps", 0)


@contextmanager
def evaluating(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    """Sample with the EMA weights in evaluation mode, without gradients, and leave the module as it was.

    Args:
        trainer: The trainer, whose callbacks hold the EMA.
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


def tell_diverged(trainer: Trainer, module: LightningModule, key: str, images: Mapping[str, Tensor]) -> Set[str]:
    """Say which images cannot be shown because they hold values that are no numbers.

    Args:
        key: Folder of the picture that they were for.
        images: (B, C, H, W) images by name.

    Returns:
        The names of these.
    """
    paradigm: Any = module
    told: dict[str, str] = paradigm.diverged(images)
    for sentence in told.values():
        trainer.print(f"not in images/{key}: {sentence}")
    return told.keys()


def keep_image(trainer: Trainer, key: str, image: Image.Image, step: int) -> None:
    """Write an image to ``<run>/images/<key>/step=*.png`` and hand it to the loggers.

    Args:
        trainer: The trainer of the run.
        key: Folder of the file and name in the loggers.
        step: Optimiser steps behind it.
    """
    write_png(image, Path(trainer.default_root_dir) / "images" / key / f"step={step:08d}.png")
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"images/{key}", [image], step=step)
        elif isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(f"images/{key}", np.asarray(image), step, dataformats="HWC")
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, artifact_file=f"images/{key}/step={step:08d}.png")
