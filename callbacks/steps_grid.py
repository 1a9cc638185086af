"""Grids of the way to an image: what a sampler holds and what it makes of that, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from callbacks.image_grid import PeriodicGrid, evaluating, tell_diverged
from datamodules.splits import Split
from files.animations import FRAME_MS, MAX_FRAMES, AnimationKind, shown, write_animation
from files.grids import render_grid
from generative.checks import checked
from generative.ranges import Count
from generative.types import Batch


@checked("callbacks.steps_grid")
class StepsGrid(PeriodicGrid):
    """The images over the sampler's steps: under each state the estimate of the image that the step went by.

    The states are those of the module's ``states``. Of a module without steps, or with one, whose state is the output itself,
    nothing is drawn.

    Args:
        num_images: Images to show, two rows each.
        num_columns: Steps to show, first and last included.
        animation: ``gif`` or ``webp``: every step as a frame, in a file beside the grid; None: there is none.
        frame_ms: Milliseconds that a frame stays.
    """

    def __init__(
        self,
        num_images: Count = 3,
        num_columns: Count = 10,
        every_n_steps: Count = 500,
        first_step: int = 20,
        split: Split = "val",
        key: str = "steps",
        animation: AnimationKind | None = None,
        frame_ms: Count = FRAME_MS,
    ) -> None:
        super().__init__(num_images, every_n_steps, first_step, split, key, f"{key}_test")
        self.num_columns = num_columns
        self.animation, self.frame_ms = animation, frame_ms

    def grid(
        self, trainer: Trainer, module: LightningModule, batch: Batch, split: Split, step: int
    ) -> Image.Image | None:
        paradigm: Any = module
        with evaluating(trainer, module):
            states = list(paradigm.states(batch, paradigm.evaluation_randomness(batch)))
        if len(states) < 2:
            return None
        held = {f"step {i} of {len(states)}": torch.cat([state.z, state.image]) for i, state in enumerate(states, 1)}
        for name in held:
            if tell_diverged(trainer, module, self.test_key if trainer.testing else self.key, {name: held[name]}):
                return None
        title = f"sampler's steps · {split} images · training step {step:,}"
        if self.animation and trainer.is_global_zero:
            names = [f"{split} {index}" for index in batch.index.tolist()]
            frames = [
                render_grid(
                    {"state": states[i].z, "estimate": states[i].image}, f"{i + 1} of {len(states)} · {title}", names
                )
                for i in shown(len(states), MAX_FRAMES)
            ]
            folder = Path(trainer.default_root_dir) / "images" / (self.test_key if trainer.testing else self.key)
            write_animation(frames, folder / f"step={step:08d}.{self.animation}", self.frame_ms)
        columns = shown(len(states), self.num_columns)
        rows: dict[str, Tensor] = {}
        for row, index in enumerate(batch.index.tolist()):
            rows[f"{split} {index}"] = torch.stack([states[i].z[row] for i in columns])
            rows[f"estimate {index}"] = torch.stack([states[i].image[row] for i in columns])
        return render_grid(rows, title, [f"{i + 1} of {len(states)}" for i in columns])
