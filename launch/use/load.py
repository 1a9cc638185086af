"""Loads a trained module: of a run's folder, or of what ``export.py`` wrote, with ``sample(batch, randomness)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from generative.export import ExportError, check_fits, load_network, read_network
from launch import build
from launch.compose import parse
from launch.errors import UserError, as_user_error, one_line
from launch.paths import lies_inside
from launch.received import checked_export
from launch.record_files import read_yaml
from launch.run_folder import RunFolder
from lightning_modules import TrainingModule

MODEL, CONFIG, CARD = "model.safetensors", "config.yaml", "README.md"


@dataclass(frozen=True)
class Trained:
    """A trained model on the disk: a run or an export.

    Attributes:
        config: Its config, with overrides applied.
        label_names: What the labels of its data are called, in order.
        load: Builds its module with the weights ``ema`` or ``raw``; None: the averaged ones where it has some.
    """

    config: DictConfig
    label_names: list[str]
    load: Callable[[str | None], TrainingModule]

    @classmethod
    def of_run(cls, run: RunFolder, config: DictConfig) -> Trained:
        """Describe a run.

        Args:
            config: Its config with overrides applied.
        """
        return cls(config, label_names(run, config), partial(load_run, run, config))

    @classmethod
    def of_export(cls, folder: Path, overrides: Sequence[str] = ()) -> Trained:
        """Describe an export.

        Args:
            folder: What ``python export.py`` wrote.
            overrides: Values that differ from the exported ones, such as ``sampler.num_steps=4``.

        Raises:
            ExportError: The export is damaged.
            UserError: An override names nothing in the export, or a whole group.
        """
        config = OmegaConf.create(read_config(folder))
        for key, value in config.module.items():  # where the module has what stands above it, it follows that
            if key in config and config[key] == value and value is not None:
                config.module[key] = f"${{{key}}}"
        for override in overrides:
            key, value = parse(override)
            there = OmegaConf.select(config, key, default=config)
            if there is config or OmegaConf.is_dict(there):
                raise UserError(
                    f"{override}: an export takes single values of its {CONFIG}, such as sampler.num_steps=4 or "
                    "evaluation_seed=1; other settings are chosen for a run."
                )
            OmegaConf.update(config, key, value)

        def load(weights: str | None) -> TrainingModule:
            exported_weights(folder, weights)
            return load_export(folder, OmegaConf.to_container(config.module, resolve=True))

        names = config.data.get("label_names") or [str(number) for number in range(config.data.num_classes)]
        return cls(config, list(names), load)


def load_export(folder: str | Path, node: Any = None) -> TrainingModule:
    """Build an exported module with its trained weights; a folder from others can run no code by it.

    Args:
        folder: What ``python export.py`` wrote.
        node: What the module is built of, plain containers; None: as it was exported.

    Returns:
        The module in evaluation mode, on the CPU.

    Raises:
        ExportError: A file is missing, damaged, or names something that is no part of Triptych.
    """
    folder = Path(folder)
    node = read_config(folder)["module"] if node is None else node
    try:
        return _load(folder, node)
    except ExportError:
        raise
    except Exception as error:  # what wrong values raise in all the constructors has no common error
        raise ExportError(
            f"{folder / CONFIG} describes no module of this version of Triptych: {one_line(error)}"
        ) from error


def load_run(run: RunFolder, config: DictConfig, weights: str | None = None) -> TrainingModule:
    """Build a run's module with its trained weights.

    Args:
        weights: ``ema`` or ``raw``; None: the averaged ones where it has some.

    Returns:
        The module in evaluation mode, on the CPU.

    Raises:
        UserError: The run has no such weights, or they do not fit the config.
    """
    module = build.build_module(config)
    build.load_weights(module, run, run.load_checkpoint(), run.kind_of_weights(weights))
    return module.eval()


def exported_weights(folder: Path, asked: str | None = None) -> str:
    """Return the kind of the weights of an export, ``ema`` or ``raw``.

    Raises:
        UserError: Another one was asked for.
    """
    own = read_network(_inside(folder, MODEL))[1].get("weights", "ema")
    if asked not in (None, own):
        raise UserError(f"{folder} is an export of the weights {own}: leave out weights={asked}.")
    return own


def label_names(run: RunFolder, config: DictConfig) -> list[str]:
    """Return what the labels of a run's data are called.

    Returns:
        Names in order; the numbers of the labels where the data set names none; empty for data without labels.
    """
    return run.record.get("data", {}).get("label_names") or [str(number) for number in range(config.data.num_classes)]


def _load(folder: Path, node: dict[str, Any]) -> TrainingModule:
    kind: Any = get_class(str(node.get("_target_")))
    if not issubclass(kind, TrainingModule):
        raise TypeError(f"{node.get('_target_')} is no module")
    try:
        kind.check_exported(node)
    except ValueError as error:
        raise ExportError(str(error)) from error
    node |= {key: value for key, value in kind.training_only.items() if key in node}
    node |= {key: str(_inside(folder, node[key])) for key in kind.part_keys if node.get(key) is not None}
    model = _inside(folder, MODEL)
    tensors, metadata = read_network(model)
    step = metadata.get("step", "")
    if not (step.isascii() and step.isdecimal()):
        raise ExportError(f"{model} is damaged: its metadata have no number of steps; export the run again.")
    check_fits(_without_memory(kind, node), tensors, model)
    module = build.build_module(OmegaConf.create({"seed": 0, "module": node}))
    load_network(module.network, model)
    module.trained_steps = int(step)
    return module.eval()  # its weights as those of a run: where they ask for no gradient, convolutions round otherwise


def _without_memory(kind: type[TrainingModule], node: dict[str, Any]) -> nn.Module:
    """Build the network without memory for its weights: a config may ask for more than there is."""
    with as_user_error(), torch.device("meta"):
        network = instantiate(OmegaConf.create(node["network"]), _convert_="all")
    if not node["network"].get("_partial_"):
        return network
    arguments = kind.network_arguments(node)
    with torch.device("meta"):
        return network(**{name: v.to("meta") if isinstance(v, Tensor) else v for name, v in arguments.items()})


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of an export.

    Returns:
        Plain containers with a ``module``.

    Raises:
        ExportError: There is none.
    """
    path = _inside(folder, CONFIG)
    if not path.exists():
        raise ExportError(f"{folder} is no export: it has no {CONFIG}; make one with python export.py run=DIR.")
    try:
        return checked_export(read_yaml(path), path)
    except UserError as error:
        raise ExportError(str(error)) from error


def _inside(folder: Path, name: Any) -> Path:
    """Return the path of a file of an export; a name or a link that leaves the folder is none."""
    path = folder / str(name)
    if not lies_inside(path, folder):
        raise ExportError(f"{path} is refused: it leaves the folder of the export; keep its files together.")
    return path
