"""Writes a run's network as a folder to hand around: weights, config, model card, and for MaskGIT the tokenizer."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from generative.exported import save_network
from generative.networks.tokenizer import Tokenizer, read_tokenizer
from launch import build
from launch.errors import UserError
from launch.exported import CARD, CONFIG, MODEL, NOT_USED, TOKENIZER
from launch.model_card import tokenizer_card, write_card
from launch.run_folder import RunFolder
from lightning_modules import MaskGIT

GRID = "test.png"
# What only training or the run's own machine needs.
NOT_EXPORTED = (
    "paths", "logger", "resume", "data_changed", "sweep", "classifier", "tokenizer", "optimized_metric", "hydra",
)  # fmt: skip


def export(run: RunFolder, config: DictConfig, weights: str, output: Path) -> Path:
    """Write an export whole or not at all.

    Args:
        run: The run.
        config: Its config.
        weights: ``ema`` or ``raw``.
        output: Folder to write; an earlier export there is replaced.

    Returns:
        The folder.

    Raises:
        UserError: The folder holds something else, or the run cannot be exported.
    """
    if output.exists() and not (output.is_dir() and (not any(output.iterdir()) or (output / MODEL).exists())):
        raise UserError(f"output={output} exists and is no export: choose another folder.")
    checkpoint = run.load_checkpoint()
    module = build.build_module(config)
    build.load_weights(module, run, checkpoint, weights)
    plain = exported_config(build.plain_config(config))
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as temporary:
        folder = Path(temporary) / output.name
        folder.mkdir()
        if isinstance(module, MaskGIT):
            plain["module"]["tokenizer"] = f"{TOKENIZER}/{MODEL}"
            export_tokenizer(module.tokenizer, config.module.tokenizer, folder / TOKENIZER)
        step = int(checkpoint["global_step"])
        metadata = {
            "experiment": str(config.name),
            "step": str(step),
            "weights": weights,
            "config_hash": str(run.record.get("config_hash")),
            "git_revision": str(run.record.get("git_revision")),
            "parts": json.dumps({name: part["hash"] for name, part in module.parts_record().items()}),
            "network": json.dumps(plain["module"]["network"]),
        }
        save_network(module.network, folder / MODEL, metadata)
        (folder / CONFIG).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        grids = sorted((run.path / "images" / "test").glob("step=*.png"))
        if grids:
            shutil.copy(grids[-1], folder / GRID)
        (folder / CARD).write_text(write_card(run, plain, module, weights, step, GRID if grids else None))
        _move(folder, output, Path(temporary) / "earlier")
    return output


def _move(folder: Path, output: Path, aside: Path) -> None:
    if output.exists():
        output.rename(aside)
    folder.rename(output)


def export_tokenizer(tokenizer: Tokenizer, path: str, folder: Path) -> None:
    """Write the tokenizer that a network's tokens belong to.

    Args:
        tokenizer: The tokenizer.
        path: Where it was loaded from.
        folder: Folder to write.
    """
    folder.mkdir()
    network, _ = read_tokenizer(path)
    save_network(tokenizer.network, folder / MODEL, {"network": json.dumps(network)})
    (folder / CARD).write_text(tokenizer_card(tokenizer))


def exported_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return what of a run's config describes its network and training anywhere.

    Args:
        config: The resolved config.

    Returns:
        The config without what belongs to the machine: its paths are null.
    """
    kept = {key: _without_paths(value) for key, value in config.items() if key not in NOT_EXPORTED}
    kept["module"] |= {key: value for key, value in NOT_USED.items() if key in kept["module"]}
    return kept


def _without_paths(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_paths(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_without_paths(value) for value in node]
    return None if isinstance(node, str) and Path(node).expanduser().is_absolute() else node
