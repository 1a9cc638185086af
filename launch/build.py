"""Builds the objects of a run from its config; they receive plain arguments, never a config object."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object, instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from omegaconf import DictConfig, OmegaConf

from callbacks.checkpoint import AtomicCheckpointIO
from datamodules.base import ImageDataModule
from generative.degradations import Degradation
from generative.metrics import catalogue
from generative.randomness import generator_for
from generative.weights import averaged_weights, differing_names
from launch.checking import check_kinds
from launch.errors import UserError, as_user_error
from launch.named import named
from launch.precision import settle_precision
from launch.run_folder import RunFolder
from lightning_modules import FullyShardedStrategy, GenerativeModule, TrainingModule
from lightning_modules.contract import Task, fault_of_kind

PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def plain_config(config: DictConfig) -> dict[str, Any]:
    """Resolve a config to plain containers.

    Returns:
        Nested dicts and lists, without the ``hydra`` node.
    """
    with as_user_error():
        if "hydra" in config:
            config = OmegaConf.masked_copy(config, [str(k) for k in config if k != "hydra"])
        plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build_datamodule(config: DictConfig) -> ImageDataModule:
    """Build the data module with its degradation, and read or make its data.

    Returns:
        The data module, set up.
    """
    with as_user_error():
        datamodule = instantiate(config.data, degradation=build_degradation(config), _convert_="all")
        datamodule.prepare_data()
        datamodule.setup()
    return datamodule


def build_degradation(config: DictConfig) -> Degradation | None:
    """Build the degradation.

    Returns:
        The degradation, or None where the config has none.
    """
    with as_user_error():
        return instantiate(config.degradation, _convert_="all") if config.get("degradation") else None


def build_module(config: DictConfig) -> TrainingModule:
    """Build the Lightning module, and check that it says what it is; the initial weights are a function of the seed alone.

    Raises:
        UserError: A setting is wrong, or the module's class does not say what others ask it for.
    """
    with as_user_error(), torch.random.fork_rng(devices=[]):
        module_class(config)
        check_kinds(config.module, config)
        torch.manual_seed(generator_for(config.seed, "weights").initial_seed())
        module = instantiate(config.module, _convert_="all")
        module.check_contract()
    return module


def module_class(config: DictConfig) -> type[TrainingModule]:
    """Return the class of a config's module, which tells what such a run does.

    Args:
        config: The config of a run.

    Raises:
        UserError: There is none, or it does not say what it does.
    """
    kind: Any = named(config.module._target_, "module._target_")
    if fault := fault_of_kind(kind):
        raise UserError(f"module._target_={config.module._target_}: {fault}.")
    return kind


def tasks_of(config: DictConfig) -> frozenset[Task]:
    """Return what the run of a config does."""
    return module_class(config).tasks_of(config.module)


def build_callbacks(config: DictConfig) -> list[Callback]:
    """Build the callbacks; entries set to null are left out.

    Returns:
        Callbacks in the order of the config, which is the order of their hooks.
    """
    with as_user_error():
        catalogue.listed()  # a metric that is listed wrongly is told now, and not where it is shown first
        return [instantiate(n, _convert_="all") for n in config.callbacks.values() if n is not None]


def build_trainer(
    config: DictConfig,
    folder: Path,
    callbacks: list[Callback],
    loggers: list[Logger] | bool,
    loaded: tuple[Path, dict[str, Any]] | None = None,
) -> Trainer:
    """Build the trainer.

    Args:
        folder: Where it writes.
        loaded: File and content of the checkpoint that a training continues from.

    Raises:
        UserError: A GPU is asked for where there is none, or another setting is wrong.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its notes repeat what the records say
    if str(config.trainer.get("accelerator")) in ("gpu", "cuda") and not torch.cuda.is_available():
        raise UserError(
            f"trainer.accelerator={config.trainer.accelerator}: PyTorch finds no GPU on this machine: choose trainer=cpu, or "
            "trainer=ddp_cpu for several processes."
        )
    settle_precision(config)
    if (
        torch.cuda.is_available()
    ):  # of a test after a training and of one later alike; processors, some of which round, not
        torch.set_float32_matmul_precision("high")
    with as_user_error():
        profiler = PROFILERS.get(config.trainer.get("profiler"))
        make = instantiate(
            config.trainer,
            callbacks=callbacks,
            profiler=profiler and profiler(dirpath=str(folder), filename="profile"),
            logger=loggers,
            plugins=[AtomicCheckpointIO(loaded)],
            _convert_="object",
            _partial_=True,
        )
        return make(default_root_dir=str(folder))  # not through the config: a ${ in the path is no interpolation


def load_weights(module: TrainingModule, run: RunFolder, checkpoint: dict[str, Any], weights: str) -> None:
    """Load the network's weights from a checkpoint.

    Args:
        module: Module to fill.
        run: The run, for messages.
        checkpoint: The loaded checkpoint.
        weights: ``ema`` or ``raw``.

    Raises:
        UserError: The checkpoint is of another network, or holds no averaged weights.
    """
    if weights not in ("ema", "raw"):
        raise UserError(f"weights={weights} is unknown: choose ema or raw.")
    if not list(module.network.parameters()):  # it knows its answers in closed form
        return
    state = dict(checkpoint["state_dict"])
    if weights == "ema":
        average = averaged_weights(checkpoint)
        if not average:
            raise UserError(f"{run.checkpoint} holds no averaged weights: use weights=raw.")
        state.update({f"network.{name}": value for name, value in average.items()})
    check_network(module, run, state)
    check_parts(module, run)
    module.load_state_dict(state)
    module.trained_steps = checkpoint["global_step"]


def check_network(module: LightningModule, run: RunFolder, state: dict[str, torch.Tensor]) -> None:
    """Check that a checkpoint fits a network.

    Args:
        run: The run, for messages.
        state: The checkpoint's state dict.

    Raises:
        UserError: Names or shapes differ.
    """
    if differing := differing_names(module.state_dict(), state):
        raise UserError(
            f"{run.checkpoint} is a checkpoint of another network: {len(differing)} tensors differ, the first is "
            f"{differing[0]}; use the run's own {differing[0].partition('.')[0]}= and data= settings."
        )


def check_parts(module: TrainingModule, run: RunFolder) -> None:
    """Check that the trained parts of a module are those that its run was trained with.

    Raises:
        UserError: A part has other weights.
    """
    recorded = run.record.get("parts", {})
    for name, part in module.parts_record().items():
        if name in recorded and recorded[name].get("hash") != part["hash"]:
            raise UserError(
                f"{name}={part['path']} has other weights than the {name} that {run.path} was trained with (it was at "
                f"{recorded[name].get('path')}): name the right one with {name}=FILE."
            )


def check_data(module: TrainingModule, datamodule: ImageDataModule, trainer: Trainer | None = None) -> None:
    """Check that the data are such as a module can work with, before anything is trained or measured.

    Args:
        datamodule: The data, set up.
        trainer: Says whether outputs are made in mixed precision; None: they are not.
    """
    mixed = trainer is not None and str(trainer.precision).endswith("mixed")
    with as_user_error():
        module.check_data(datamodule)
        if isinstance(module, GenerativeModule):
            # Not the trainer's own context, which is that of its device: the module is not there yet.
            with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
                module.try_outputs(datamodule.batch("val", range(1)))


def check_training(module: TrainingModule) -> None:
    """Check that there is something to train, and that training will teach what sampling asks for."""
    if not module.trainable_parameters():
        raise UserError(
            f"{type(module.network).__name__} has nothing to learn: evaluate a run with it, evaluate.py run=RUN network=..."
        )
    with as_user_error():
        module.check_training()


def check_ranks(config: DictConfig, trainer: Trainer) -> None:
    """Check that the ranks divide the batch, and that a network that is to be sharded can be.

    Args:
        trainer: The trainer, which knows the number of ranks.

    Raises:
        UserError: They do not, or it cannot.
    """
    if isinstance(trainer.strategy, FullyShardedStrategy):
        if reason := module_class(config).not_shardable:
            raise UserError(f"trainer=fsdp cannot train {config.module._target_}: {reason}; use trainer=ddp.")
        if reason := getattr(get_object(config.optimizer._target_), "not_shardable", None):
            raise UserError(
                f"trainer=fsdp cannot train with {config.optimizer._target_}: {reason}; use optimizer=adamw or trainer=ddp."
            )
    size, ranks = config.data.global_batch_size, trainer.world_size
    if size % ranks:
        raise UserError(
            f"data.global_batch_size={size} is not divisible by the {ranks} ranks: use a multiple of {ranks}."
        )
