"""Checks that a checkpoint has all that a training continues from, before Lightning restores it piece by piece."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer
from torch.optim import Optimizer

from generative.weights import averaged_weights
from launch.errors import UserError
from launch.run_folder import RunFolder
from lightning_modules import TrainingModule

STEPS = ("epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total", "completed")


def check_restorable(module: TrainingModule, trainer: Trainer, run: RunFolder, checkpoint: dict[str, Any]) -> None:
    """Check the parts of a checkpoint that only a training uses.

    Args:
        run: The run, for messages.
        checkpoint: The loaded checkpoint; its weights are checked already.

    Raises:
        UserError: Something is missing or of another kind or shape.
    """
    fault = (
        _loop_fault(trainer, checkpoint)
        or _optimizer_fault(module, checkpoint)
        or _average_fault(module, averaged_weights(checkpoint))
    )
    if fault:
        raise UserError(
            f"resume={run.path} cannot continue from {run.checkpoint}: {fault}; put back a copy of the file, or start the run "
            "again."
        )


def _loop_fault(trainer: Trainer, checkpoint: dict[str, Any]) -> str | None:
    loops = checkpoint.get("loops")
    loop = loops.get("fit_loop") if isinstance(loops, dict) else None
    if fault := _count_fault(trainer.fit_loop.state_dict(), loop, "loops.fit_loop"):
        return fault
    steps: Any = loop
    for key in STEPS:
        steps = steps[key]
    step = checkpoint["global_step"]
    return None if steps == step else f"it counts {steps} optimiser steps in its loops, but its global_step is {step}"


def _count_fault(own: Any, other: Any, name: str) -> str | None:
    """Compare nested counters with those of a loop that has made no step."""
    if isinstance(own, dict):
        if not isinstance(other, dict):
            return f"{name} is missing or no dict"
        return next((fault for key in own if (fault := _count_fault(own[key], other.get(key), f"{name}.{key}"))), None)
    if isinstance(own, bool) or isinstance(other, bool):
        return None if type(own) is type(other) else f"{name} is missing or of another kind"
    if isinstance(own, int):
        return None if isinstance(other, int) and other >= 0 else f"{name} is missing or no count"
    return None


def _optimizer_fault(module: TrainingModule, checkpoint: dict[str, Any]) -> str | None:
    built: Any = module.configure_optimizers()
    optimizer: Optimizer = built["optimizer"]
    states, schedulers = checkpoint.get("optimizer_states"), checkpoint.get("lr_schedulers")
    saved = _only_dict(states)
    if saved is None or _only_dict(schedulers) is None:
        return "it does not hold the states of one optimiser and one learning-rate schedule"
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not isinstance(saved.get("state"), dict):
        return "its optimiser's state is incomplete"
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        return "its optimiser's state is incomplete"
    module.on_load_checkpoint(checkpoint)  # brings it into the present form, as restoring does
    groups, state = saved["param_groups"], saved["state"]
    sizes = [len(group["params"]) for group in optimizer.param_groups]
    if [len(group["params"]) for group in groups] != sizes:
        return f"its optimiser has other groups of weights than the {len(sizes)} of this version"
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    shapes: dict[Any, torch.Size] = {key: parameter.shape for key, parameter in parameters.items()}
    shapes |= {name: parameter.shape for name, parameter in module.named_parameters()}  # trainer=fsdp saves by names
    for key, values in state.items():
        if key not in shapes or not isinstance(values, dict):
            return f"its optimiser's state has an entry {str(key)[:40]} that is of no weight"
        for name, value in values.items():
            shape = value.shape if isinstance(value, torch.Tensor) else torch.Size()
            if shape not in (torch.Size(), shapes[key]):
                return f"its optimiser's {name} of weight {key} has the shape {tuple(shape)}"
    return None


def _only_dict(value: Any) -> dict[Any, Any] | None:
    return value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict) else None


def _average_fault(module: TrainingModule, average: dict[str, torch.Tensor] | None) -> str | None:
    if average is None:
        return None
    own = {name: p.shape for name, p in module.network.named_parameters() if p.requires_grad}
    other = {name: value.shape for name, value in average.items()}
    differing = sorted(own.keys() ^ other.keys()) or sorted(name for name in own if own[name] != other[name])
    return (
        f"its averages (EMA) differ from the network in {len(differing)} tensors, such as {differing[0]}"
        if differing
        else None
    )
