"""Grids of the way to an image: what a sampler holds and what it makes of that, step by step."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from callbacks.image_grid import PeriodicGrid, evaluating
from datamodules.splits import Split
from files.grids import render_grid
from generative.randomness import Randomness
from generative.samplers.diffusion import State
from generative.types import Batch


class StepsGrid(PeriodicGrid):
    """The images over the sampler's steps: under each state the image that the module made of it at that step.

    Args:
        num_images: Images to show, two rows each.
        num_columns: Steps to show, first and last included.
        every_n_steps: See ``PeriodicGrid``.
        first_step: See ``PeriodicGrid``.
        split: See ``PeriodicGrid``.
        key: See ``PeriodicGrid``; by default the name of the steps.

    Raises:
        ValueError: If there is no column.

    Attributes:
        steps: Name of the steps.
        state_caption: Caption of a row of states, before the image's index; the split where it is empty.
        image_caption: Caption of a row of images, before the image's index.
    """

    steps: ClassVar[str]
    state_caption: ClassVar[str] = ""
    image_caption: ClassVar[str]

    def __init__(
        self,
        num_images: int = 3,
        num_columns: int = 10,
        every_n_steps: int = 500,
        first_step: int = 20,
        split: Split = "val",
        key: str | None = None,
    ) -> None:
        key = key or self.steps
        super().__init__(num_images, every_n_steps, first_step, split, key, f"{key}_test")
        if num_columns < 1:
            raise ValueError(f"callbacks.{self.config_key}.num_columns={num_columns} must be at least 1.")
        self.num_columns = num_columns

    @abstractmethod
    def states(self, module: Any, batch: Batch, randomness: Randomness) -> Iterator[State]:
        """Return the states of a module's sampler.

        Args:
            module: The module.
            batch: The images.
            randomness: Source of all draws.

        Returns:
            One state a step: z is what the sampler holds after it, as a picture, image what it made of the state before.
        """

    def grid(self, trainer: Trainer, module: LightningModule, batch: Batch, split: Split, step: int) -> Image.Image:
        """See ``PeriodicGrid.grid``."""
        paradigm: Any = module
        with evaluating(trainer, module):
            states = list(self.states(paradigm, batch, paradigm.evaluation_randomness(batch)))
        shown = sorted({round(i) for i in np.linspace(0, len(states) - 1, self.num_columns)})
        rows: dict[str, Tensor] = {}
        for row, index in enumerate(batch.index.tolist()):
            rows[f"{self.state_caption or split} {index}"] = torch.stack([states[i].z[row] for i in shown])
            rows[f"{self.image_caption} {index}"] = torch.stack([states[i].image[row] for i in shown])
        captions = [f"{i + 1} of {len(states)}" for i in shown]
        return render_grid(rows, f"{self.steps} steps · {split} images · training step {step:,}", captions)


class DenoisingGrid(StepsGrid):
    """The way of a diffusion: under each state the estimate of the image; needs a module with ``denoising_states``."""

    config_key = "denoising_grid"
    steps = "denoising"
    image_caption = "estimate"

    def states(self, module: Any, batch: Batch, randomness: Randomness) -> Iterator[State]:
        """See ``StepsGrid.states``."""
        return module.denoising_states(batch, randomness)


class DecodingGrid(StepsGrid):
    """The way of a token decoder; needs a module with ``decoding_states``.

    Under each picture of the accepted tokens, the patches of the masked ones grey, stands the decoded picture of that
    step's full guess.
    """

    config_key = "decoding_grid"
    steps = "decoding"
    state_caption = "tokens"
    image_caption = "decoded"

    def states(self, module: Any, batch: Batch, randomness: Randomness) -> Iterator[State]:
        """See ``StepsGrid.states``."""
        return module.decoding_states(batch, randomness)
