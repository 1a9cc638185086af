"""What a notebook types: ``triptych.load(folder)`` gives a trained module back, of a run or of an export.

```python
import torch
import triptych

model = triptych.load("outputs/meanflow_dit/RUN")
batch = triptych.Batch(image=degraded, index=torch.arange(len(degraded)), degraded=degraded, validity=validity)
images = model.sample(batch, model.evaluation_randomness(batch))["sample"]
```
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from generative.types import Batch, Condition, Degraded, LossOutput, State
from launch.command_line import run_config
from launch.errors import UserError
from launch.run_folder import RunFolder
from launch.use.load import MODEL, load_export, load_run
from lightning_modules import Card, GenerativeModule, Output, TrainingModule

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Card",
    "Condition",
    "Degraded",
    "GenerativeModule",
    "LossOutput",
    "Output",
    "State",
    "TrainingModule",
    "UserError",
    "load",
]


def load(
    folder: str | Path, weights: Literal["ema", "raw"] | None = None, device: str | torch.device = "cpu"
) -> TrainingModule:
    """Load a trained module.

    Args:
        folder: A run's folder, a checkpoint in it, or a folder that ``export.py`` wrote, also one from somebody else: nothing
            in it is run.
        weights: Of a run: ``ema``, the averaged weights, or ``raw``; None for the averaged ones where it has them. An export
            has one kind.
        device: Where the module goes.

    Returns:
        The module in evaluation mode. What its ``tasks`` are tells how it is used: what makes images is a
        ``GenerativeModule`` with ``sample``, a judge answers with ``network(images)``.

    Raises:
        UserError: There is no such folder, or the run has no such weights; the sentence says what helps.
        ExportError: The folder is a damaged export, or one of another version.
    """
    folder = Path(folder).expanduser()
    if (folder / MODEL).exists():
        if weights is not None:
            raise UserError(f"{folder} is an export, which has one kind of weights: leave out weights={weights}.")
        return load_export(folder).to(device)
    run = RunFolder.existing(folder, "folder")
    return load_run(run, run_config(run), weights).to(device)
