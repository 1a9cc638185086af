"""What the loop of ``train.py`` costs beside a bare loop of the same steps: data, damage, EMA, logging, guards, progress.

Prints their ratio, measured in one run and in turn, because absolute times on a shared machine drift:
``python benchmarks/training_step.py``; ``--experiment ddpm_scenes`` for another experiment, and overrides such as
``optimizer=muon``, ``compile=true`` or, on a machine with a GPU, ``trainer=gpu``. Steps are compared by ``speed.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from omegaconf import open_dict
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generative.randomness import Randomness, StepRandomness, generator_for
from generative.types import Batch
from launch import build
from launch.compose import compose_config
from launch.loggers import build_loggers
from launch.record import hardware
from launch.run_folder import RunFolder
from lightning_modules.compiled import CompiledTraining


class Stopwatch(Callback):
    """Takes the time at the end of each training batch, after all other callbacks."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Take the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


NOT_EVERY_STEP = ("image_grid", "steps_grid", "generation", "label_accuracy")


def full_loop(experiment: str, overrides: list[str], steps: int, warmup: int) -> float:
    """Return seconds per step of the loop of ``train.py``: data, degradation, EMA, logging, guard, progress."""
    total = warmup + steps
    config = compose_config(
        [f"experiment={experiment}", f"trainer.max_steps={total}", f"trainer.val_check_interval={total + 1}",
         f"callbacks.checkpoint.every_n_steps={total + 1}", *overrides]
    )  # fmt: skip
    with open_dict(config.callbacks):
        for callback in NOT_EVERY_STEP:
            config.callbacks.pop(callback, None)
    config.name = "benchmark"
    with tempfile.TemporaryDirectory() as folder:
        config.paths.run = folder
        watch = Stopwatch()
        loggers = build_loggers(config, RunFolder(Path(folder)), None)
        trainer = build.build_trainer(config, Path(folder), [*build.build_callbacks(config), watch], loggers)
        trainer.fit(build.build_module(config), datamodule=build.build_datamodule(config))
    return (watch.times[-1] - watch.times[warmup - 1]) / steps


def prepared(experiment: str, overrides: list[str]) -> tuple[Any, Batch, torch.optim.Optimizer]:
    """Return module, one training batch and optimiser for the bare loop."""
    config = compose_config([f"experiment={experiment}", *overrides])
    config.name = "benchmark"
    device = torch.device("cuda" if "trainer=gpu" in overrides else "cpu")
    module = build.build_module(config).to(device)
    datamodule = build.build_datamodule(config)
    module.measure(datamodule)
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())).to(device), 0)
    return module, batch, module.configure_optimizers()["optimizer"]


def bare_step(
    module: Any,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[Batch, Randomness], Tensor],
    step: int,
) -> None:
    """One step as a plain PyTorch loop makes it."""
    randomness = StepRandomness(generator_for(0, "objective", step, device=batch.image.device), len(batch.image))
    loss = loss_of(batch, randomness)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(module.network.parameters(), 1.0)
    optimizer.step()


def seconds(function: Callable[[int], None], steps: int) -> float:
    """Return seconds per call."""
    begin = time.perf_counter()
    for step in range(steps):
        function(step)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--experiment", default="meanflow_dit")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    module, batch, optimizer = prepared(arguments.experiment, arguments.overrides)
    print(f"{hardware(batch.image.device)}, {arguments.experiment}, batch {len(batch.image)}\n")
    compiled = CompiledTraining(module.network, module.trained_method).used if module.compile_training else nullcontext

    def loss(batch: Batch, randomness: Randomness) -> Tensor:
        with compiled():
            return module.loss(batch, randomness).loss

    def bare(step: int) -> None:
        bare_step(module, batch, optimizer, loss, step)

    seconds(bare, 3)
    shares, rates = [], []
    for _ in range(arguments.rounds):
        before = seconds(bare, 2 * arguments.steps)
        full = full_loop(arguments.experiment, arguments.overrides, 4 * arguments.steps, 10)
        after = seconds(bare, 2 * arguments.steps)
        shares.append((before + after) / 2 / full)
        rates.append(len(batch.image) / full)
    print(f"\nfull loop of train.py: {statistics.median(rates):.0f} images/s; "
          f"share of the bare loop's: {statistics.median(shares):.3f} ({min(shares):.3f}-{max(shares):.3f})")  # fmt: skip


if __name__ == "__main__":
    main()
