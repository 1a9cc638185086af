"""Loads what ``export.py`` wrote: ``load_exported(folder).sample(batch, randomness)``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_object
from omegaconf import OmegaConf

from generative.exported import ExportError, load_network
from launch import build
from lightning_modules import GenerativeModule

MODEL, CONFIG, CARD, TOKENIZER = "model.safetensors", "config.yaml", "README.md", "tokenizer"
PACKAGES = ("generative", "lightning_modules")
OPTIMIZERS = {"torch.optim.AdamW"}  # needed to build a module, not to use it


def load_exported(folder: str | Path) -> GenerativeModule:
    """Build an exported module with its trained weights; a file from others can run no code by it.

    Args:
        folder: What ``python export.py`` wrote.

    Returns:
        The module in evaluation mode, on the CPU.

    Raises:
        ExportError: A file is missing, damaged, or names something that is no part of Triptych.
    """
    folder = Path(folder)
    node = read_config(folder)["module"]
    _check_targets(node, folder / CONFIG)
    if node.get("tokenizer"):
        node["tokenizer"] = str(folder / node["tokenizer"])
    try:
        module = build.build_module(OmegaConf.create({"seed": 0, "module": node}))
    except build.UserError as error:
        raise ExportError(f"{folder / CONFIG} describes no module of this version of Triptych: {error}") from error
    metadata = load_network(module.network, folder / MODEL)
    module.trained_steps = int(metadata["step"])
    return module.eval().requires_grad_(False)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the config of an export.

    Args:
        folder: The export.

    Returns:
        Plain containers with a ``module``.

    Raises:
        ExportError: There is none.
    """
    path = folder / CONFIG
    try:
        config = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ExportError(
            f"{folder} is no export: it has no {CONFIG}; make one with python export.py run=DIR."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExportError(f"{path} is damaged: export the run again.") from error
    if not isinstance(config, dict) or not isinstance(config.get("module"), dict):
        raise ExportError(f"{path} is damaged: it has no module; export the run again.")
    return config


def _check_targets(node: Any, path: Path) -> None:
    if isinstance(node, Mapping):
        target = node.get("_target_")
        if target is not None and not _is_own(target):
            raise ExportError(f"{path} is refused: {target} is no part of Triptych, and to call it could run any code.")
        for value in node.values():
            _check_targets(value, path)
    elif isinstance(node, list):
        for value in node:
            _check_targets(value, path)
    elif isinstance(node, str) and "${" in node:
        raise ExportError(f"{path} is refused: {node} is no value; an export holds none but values.")


def _is_own(target: Any) -> bool:
    if not isinstance(target, str) or target in OPTIMIZERS:
        return target in OPTIMIZERS
    if target.partition(".")[0] not in PACKAGES:
        return False
    try:
        found = get_object(target)
    except Exception:  # what is not there is not ours; Hydra has no common error for it
        return False
    return inspect.isclass(found) and found.__module__.partition(".")[0] in PACKAGES
