"""What a notebook types: ``triptych.load(folder)`` gives a trained model back, of a run or of an export.

```python
import triptych

model = triptych.load("outputs/meanflow_dit/RUN")
restored = model.restore("photo.jpg", num_samples=4)  # restored.mean, restored.samples: images of Pillow
```
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from omegaconf import DictConfig, OmegaConf

from generative.types import Batch, Condition, Degraded, LossOutput, State
from launch.command_line import run_config
from launch.errors import UserError
from launch.evaluation import RUN_FOLDER
from launch.paths import typed_path
from launch.run_folder import RunFolder
from launch.use.degrading import degradations_of
from launch.use.export import copy_export, example_pictures, export
from launch.use.load import MODEL, Trained
from lightning_modules import Card, GenerativeModule, Output, TrainingModule
from triptych.answers import Degraded as DegradedPicture
from triptych.answers import Restored, Step
from triptych.model import Model

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Card",
    "Condition",
    "Degraded",
    "DegradedPicture",
    "GenerativeModule",
    "LossOutput",
    "Model",
    "Output",
    "Restored",
    "State",
    "Step",
    "TrainingModule",
    "UserError",
    "load",
    "train",
]


def load(folder: str | Path, weights: Literal["ema", "raw"] | None = None, device: str = "auto") -> Model:
    """Load a trained model.

    Args:
        folder: A run's folder, a checkpoint in it, or a folder that ``export.py`` wrote, also one from somebody else: nothing
            in it is run.
        weights: Of a run: ``ema``, the averaged weights, or ``raw``; None for the averaged ones where it has them. An export
            has one kind.
        device: Where it goes; ``auto`` is a GPU where there is one, as for ``generate.py``.

    Returns:
        The model, which restores, fills, draws or reconstructs, as its ``tasks`` say; ``model.module`` is the module in
        evaluation mode.

    Raises:
        UserError: There is no such folder or device, or the run has no such weights; the sentence says what helps.
        ExportError: The folder is a damaged export, or one of another version.
    """
    folder, place = typed_path("folder", folder), _device(device)
    if (folder / MODEL).exists():
        trained = Trained.of_export(folder)
        write: Callable[[Path, str], object] = partial(copy_export, folder)
    else:
        run = RunFolder.existing(folder, "folder")
        config = run_config(run)
        trained, folder, write = Trained.of_run(run, config), run.path, _exporter(run, config, weights)
    data, degradation = trained.config.data, OmegaConf.select(trained.config, "degradation")
    own = degradations_of(None if degradation is None else OmegaConf.to_container(degradation, resolve=True))
    module = trained.load(weights).to(place)
    return Model(module, data.image_size, data.channels, trained.label_names, own, example_pictures(folder), write)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)  # a device of a known kind may not be there
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UserError(f"device={name} is no device of this machine: choose auto, cpu or a GPU as cuda:0.") from error
    return device


def _exporter(run: RunFolder, config: DictConfig, weights: str | None) -> Callable[[Path, str], object]:
    return lambda output, expected: export(run, config, weights, output, expected=expected)


def train(experiment: str, overrides: Sequence[str] = ()) -> Path:
    """Train an experiment in a process of its own, as ``python train.py experiment=EXPERIMENT OVERRIDES`` does.

    Args:
        experiment: Name of the experiment.
        overrides: Settings, such as ``["trainer.max_steps=100", "data=digits"]``.

    Returns:
        The folder of the run, for ``load``.

    Raises:
        UserError: It ended with an error, which it has printed.
    """
    command = [sys.executable, "-m", "triptych", "train", f"experiment={experiment}", *overrides]
    folder = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="")  # noqa: T201
            if line.startswith(RUN_FOLDER):
                folder = Path(line.removeprefix(RUN_FOLDER).strip())
    if process.returncode or folder is None:
        raise UserError(f"{shlex.join(command[2:])} ended with exit code {process.returncode}.")
    return folder
