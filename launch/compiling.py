"""Whether a training's forward pass is compiled, and what ``compile=auto`` stands for.

Compiled where all of this holds, plain otherwise:

- The network says that its training gains from it (``gains_from_compiling``).
- The training runs on the processor. What it brings on a GPU has not been measured.
- The training makes at least ``MIN_CALLS`` forward passes. Compiling takes about 55 s of processor time the first time on a
  machine (5 s later, from the cache folder) and saves about 40 ms of the 235 ms of a step of ``meanflow_dit`` on two cores:
  it is repaid after 55 / 0.04 = 1400 steps. Larger networks save more in each step and compile hardly longer.
- The paradigm and the strategy of the ranks can be compiled, and this machine has a compiler.

Nothing is measured. A run records what was decided when it began, and continues with that: compiled sums have other last
digits than plain ones.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from files.words import count
from launch.build import module_class
from launch.errors import UserError
from launch.named import named
from launch.run_folder import is_main_process
from lightning_modules import FullyShardedStrategy
from lightning_modules.compiled import try_compiler

AUTO = "auto"
KEY = "compile"
MIN_CALLS = 1500


def decided(config: DictConfig, steps_made: int = 0) -> tuple[bool, str]:
    """Decide whether to compile.

    Args:
        config: The config of a run.
        steps_made: Optimiser steps behind it.

    Returns:
        Whether to compile, and why.
    """
    kind: Any = named(config.network._target_)
    if not getattr(kind, "gains_from_compiling", False):
        return False, f"{kind.__name__} trains no faster compiled"
    accelerator = str(config.trainer.get("accelerator", AUTO))
    if accelerator != "cpu" and (accelerator != AUTO or torch.accelerator.is_available()):
        return False, "what it brings is known on processors only"
    if obstacle := _obstacle(config):
        return False, obstacle
    trial = int(config.trainer.get("fast_dev_run") or 0)  # true is one step
    steps = min(trial or config.trainer.max_steps, config.trainer.max_steps) - steps_made
    calls = steps * config.trainer.get("accumulate_grad_batches", 1)
    if calls < MIN_CALLS:
        return (
            False,
            f"{count(calls, 'step')}: too few to earn the minute that compiling takes: that needs {MIN_CALLS:,}",
        )
    try:
        try_compiler(torch.device("cpu"), OmegaConf.select(config, "paths.cache_dir"))
    except ValueError as error:
        return False, str(error)
    return True, f"{count(calls, 'step')} of {kind.__name__} earn the minute that compiling takes"


def check_compile(config: DictConfig) -> None:
    """Check, where the network is to be compiled, that it can be on some machine.

    Raises:
        UserError: It cannot.
    """
    if config.module.get(KEY) is True and (obstacle := _obstacle(config)):
        raise UserError(f"compile=true cannot be: {obstacle}; use compile=false.")


def settle_compile(config: DictConfig, device: torch.device, steps_made: int = 0) -> bool:
    """Decide what ``auto`` stands for, and tell it; where ``true`` was chosen, try the compiler.

    To try it takes seconds: all that is free to check comes before.

    Args:
        config: The config of a run that begins or continues.
        device: Device of the training.
        steps_made: Optimiser steps behind it.

    Returns:
        Whether the network is compiled.

    Raises:
        UserError: It was to be, and this machine has no compiler.
    """
    asked = config.module.get(KEY)
    if asked == AUTO:
        compiles, why = decided(config, steps_made)
        if is_main_process():
            print(f"{KEY}={AUTO}: {str(compiles).lower()}: {why}", flush=True)  # noqa: T201
        return compiles
    if asked is True:
        try:
            try_compiler(device, OmegaConf.select(config, "paths.cache_dir"))
        except ValueError as error:
            raise UserError(f"compile=true: {error}, or set compile=false.") from error
    return asked is True


def _obstacle(config: DictConfig) -> str | None:
    """Say why a training cannot be compiled on any machine, or None where it can."""
    if reason := module_class(config).not_compilable:
        return f"{config.module._target_} cannot be compiled, as {reason}"
    strategy = config.trainer.get("strategy")
    if OmegaConf.is_dict(strategy) and issubclass(named(strategy._target_), FullyShardedStrategy):
        return "trainer=fsdp gathers weights within the forward pass"
    return None
