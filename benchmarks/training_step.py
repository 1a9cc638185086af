"""What a training step costs: the full loop against a bare one, and the objectives against flow matching.

Prints ratios measured in one run, pair by pair in turn, because absolute times on a shared machine drift:
``python benchmarks/training_step.py``. On a machine with a GPU, ``trainer=gpu`` as an override measures that. Another
experiment, such as ``--experiment ddpm_scenes``, is measured as full loop against bare loop alone.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Callback
from omegaconf import open_dict
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from generative.flow_map import FlowMap, per_image
from generative.objectives import FlowMatching, ImprovedMeanFlow
from generative.objectives.flow_map import FlowSlice
from generative.randomness import Randomness, StepRandomness, generator_for
from generative.types import Batch
from launch import build
from launch.compose import compose_config
from launch.loggers import build_loggers
from launch.record import hardware
from launch.run_folder import RunFolder
from lightning_modules import MaskGIT, MeanFlowRestorer


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
    if isinstance(module, MaskGIT):
        datamodule.use_tokenizer(module.tokenizer)
    batch = datamodule.on_after_batch_transfer(next(iter(datamodule.train_dataloader())).to(device), 0)
    return module, batch, module.configure_optimizers()["optimizer"]


def meanflow_loss(module: Any, objective: Any, batch: Batch, randomness: Randomness) -> Tensor:
    """The loss of a restorer under another objective than its own."""
    source = randomness.normal(*batch.image.shape[1:])
    return objective(module.flow_map, batch.image, source, module._condition(batch), randomness, progress=0.5).loss


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


class InGraph(ImprovedMeanFlow):
    """The derivative kept in the autograd graph: what torch.func.jvp costs without no_grad."""

    def consistency(self, flow_map: FlowMap, rows: FlowSlice) -> tuple[Tensor, Tensor]:
        """See ``FlowMapObjective.consistency``."""

        def average_velocity(z: Tensor, t: Tensor) -> Tensor:
            return flow_map.velocities(z, rows.r, t, rows.condition)[0]

        with sdpa_kernel(SDPBackend.MATH):
            result = torch.func.jvp(average_velocity, (rows.z, rows.t), (rows.v, torch.ones_like(rows.t)))
        return result[0] + per_image(rows.t - rows.r) * result[1], rows.v


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
    if isinstance(module, MeanFlowRestorer):
        compare_objectives(module, batch, optimizer, arguments)

    def bare(step: int) -> None:
        bare_step(module, batch, optimizer, lambda b, r: module.loss(b, r).loss, step)

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


def compare_objectives(
    module: Any, batch: Batch, optimizer: torch.optim.Optimizer, arguments: argparse.Namespace
) -> None:
    """Print what a step costs under each objective of a flow map."""
    objective = module.objective
    distribution = objective.time_distribution
    everywhere = type(distribution)(**{**vars(distribution), "distinct_share": 1 - distribution.terminal_share})
    kinds: dict[str, Any] = {
        "flow matching": FlowMatching(distribution, objective.weight),
        "MeanFlow, JVP under no_grad on the slice": objective,
        "MeanFlow, JVP under no_grad on the whole batch": ImprovedMeanFlow(
            everywhere, objective.weight, target=objective.target
        ),
        "MeanFlow, JVP in the graph on the slice": InGraph(distribution, objective.weight, target=objective.target),
    }
    steps = {
        name: partial(bare_step, module, batch, optimizer, partial(meanflow_loss, module, kind))
        for name, kind in kinds.items()
    }
    for step in steps.values():
        seconds(step, 3)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            times[name].append(seconds(step, arguments.steps))
    base = times["flow matching"]
    print(f"slice with r < t: {distribution.distinct_share:.0%}\n")
    print("| step | ms, median | ratio to flow matching, median (min-max) |\n|---|---:|---:|")
    for name, values in times.items():
        ratios = [a / b for a, b in zip(values, base, strict=True)]
        print(f"| {name} | {1e3 * statistics.median(values):.1f} "
              f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) |")  # fmt: skip


if __name__ == "__main__":
    main()
