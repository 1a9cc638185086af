"""Measures what a step of training costs, in a process of its own: ``python -m launch.study.timing FILE OVERRIDES``.

Seconds are the processor's, not the wall clock's: on one thread both are the same on an idle machine, and others who use it do
not make a run shorter.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from omegaconf import open_dict

from callbacks.checkpoint import LastCheckpoint
from launch import build
from launch.compose import compose_config
from launch.errors import reported
from launch.evaluation import takes_part_in_test
from launch.paths import make_absolute
from launch.received import note_typed
from launch.run_folder import write_json
from launch.study.plan import num_parameters
from launch.sweep.parent import end_with_parent

STEPS = 50
WARM_UP = 5  # steps before, in which memory is allocated


class Stopwatch(Callback):
    """Takes the processor's time of some steps, from the start of a batch to the start of another.

    Attributes:
        seconds_per_step: Their mean.
        batch_size: Images of a step.
    """

    def __init__(self) -> None:
        self.seconds_per_step = 0.0
        self.batch_size = 0
        self._begin = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batch_size = len(batch.image)
        if batch_idx == WARM_UP:
            self._begin = time.process_time()
        elif batch_idx == WARM_UP + STEPS:
            self.seconds_per_step = (time.process_time() - self._begin) / STEPS


def time_steps(overrides: list[str], folder: Path) -> dict[str, float]:
    """Make some steps of a training, without validations, grids and checkpoints.

    Args:
        overrides: What it is composed of.
        folder: A folder for what the trainer might write.

    Returns:
        ``seconds_per_step``, ``batch_size``, and ``parameters`` of its network.
    """
    note_typed(overrides)
    config = compose_config([*overrides, f"trainer.max_steps={WARM_UP + STEPS + 1}", "trainer.limit_val_batches=0"])
    with open_dict(config.trainer):
        config.trainer.enable_progress_bar = False
    make_absolute(config)
    config.paths.run = str(folder)
    watch = Stopwatch()
    training = [
        callback
        for callback in build.build_callbacks(config)
        if not takes_part_in_test(callback) and not isinstance(callback, LastCheckpoint)
    ]
    trainer = build.build_trainer(config, folder, [watch, *training], False)
    module = build.build_module(config)
    datamodule = build.build_datamodule(config)
    build.check_data(module, datamodule, trainer)
    trainer.fit(module, datamodule=datamodule)
    return {
        "seconds_per_step": watch.seconds_per_step,
        "batch_size": watch.batch_size,
        "parameters": num_parameters(module),
    }


def main() -> None:
    """Time and write the file."""
    end_with_parent()
    with reported():
        path = Path(sys.argv[1])
        write_json(path, time_steps(sys.argv[2:], path.parent))


if __name__ == "__main__":
    main()
