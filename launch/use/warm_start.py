"""``init=RUN``: a training that begins with the weights of another run; its optimiser, averages and steps begin anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from files.words import printable
from generative.export import SUFFIX, ExportError, read_network
from generative.networks.growth import ShapeError, begin_from
from generative.weights import averaged_weights, first_not_finite, network_weights, weights_hash
from launch.build import plain_config
from launch.errors import UserError
from launch.former import renewed
from launch.paths import typed_path
from launch.run_folder import RunFolder, is_main_process
from launch.trained_parts import PIXEL
from launch.use.load import CONFIG, MODEL, read_config
from lightning_modules import TrainingModule

SPOKEN = {"ema": "averaged", "raw": "raw"}


def begin_with_run(module: TrainingModule, config: DictConfig) -> dict[str, Any] | None:
    """Fill a new module's network with the weights that ``init`` names, and tell what was taken, grown and left.

    Args:
        module: The module, its network not sharded yet.

    Returns:
        ``init`` of ``run.json``: ``run``, the path; ``name``, ``weights``, ``step`` and ``hash``; None where nothing is named.

    Raises:
        UserError: There are no such weights, or they do not fit the network.
    """
    path, wanted = (OmegaConf.select(config, f"init.{key}") for key in ("run", "weights"))
    if wanted not in (None, *SPOKEN):
        raise UserError(f"init.weights={wanted} is unknown: choose {' or '.join(SPOKEN)}.")
    if path is None:
        if wanted is not None:
            raise UserError(f"init.weights={wanted} names no run: add init=RUN, or leave it out.")
        return None
    place = typed_path("init", path)
    model = place / MODEL if place.is_dir() else place
    exported = model.suffix == SUFFIX and model.is_file()
    weights, origin, there = _exported(model, wanted) if exported else _trained(place, wanted)
    here, settings = plain_config(config), _node(there, "network")
    own_kinds = {kind.__name__ for kind in type(module.network).__mro__}
    kind = printable(settings.get("_target_", "")).rpartition(".")[2]
    own = type(module.network).__name__
    if kind and kind not in own_kinds:
        raise UserError(
            f"init={path} holds the weights of a {kind}, and this run trains a {own}: name a run of that network, or set "
            "network= to the one of that run."
        )
    try:
        lines = begin_from(module.network, weights)
    except ShapeError as error:
        differing = _differing(settings, here["network"])
        sizes = f"that run has {differing}: " if differing else ""
        raise UserError(
            f"init={path} does not fit this run's {own}: {error}; {sizes}give this one the sizes of that one, or leave out "
            "init=."
        ) from error
    except ValueError as error:
        raise UserError(f"init={path} does not fit this run's {own}: {error}.") from error
    before, now = (_node(each, "module").get("output") for each in (there, here))
    if before and now and before != now:
        lines.append(
            f"module.output was {printable(before)} there and is {now} here, so the same numbers mean another image"
        )
    there_space, here_space = (_node(each, "module").get("space") for each in (there, here))
    if there_space != here_space and not (exported and there_space and here_space):
        lines.append(
            f"space was {printable(there_space or PIXEL)} there and is {here_space or PIXEL} here: unless both are of one "
            "autoencoder, the same numbers mean another image"
        )
    origin |= {"run": str(place.absolute()), "hash": weights_hash(weights)}
    if is_main_process():
        steps = "" if origin["step"] is None else f" at step {origin['step']:,}"
        print(f"init={path}: {SPOKEN[origin['weights']]} weights of {origin['name']}{steps}, {origin['hash']}")  # noqa: T201
        print("\n".join(f"  {line}" for line in lines), flush=True)  # noqa: T201
    return origin


def _trained(place: Path, wanted: str | None) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read the weights of a run, what is recorded of them, and the config."""
    _, checkpoint = RunFolder.checkpoint_of(place, "init")
    averaged = bool(averaged_weights(checkpoint))
    if wanted == "ema" and not averaged:
        raise UserError(f"init={place} holds no averaged weights: set init.weights=raw.")
    kind = wanted or ("ema" if averaged else "raw")
    config = _node(checkpoint, "config")
    origin = {"name": printable(config.get("name", "a run")), "weights": kind, "step": checkpoint["global_step"]}
    return network_weights(checkpoint, kind == "ema"), origin, renewed(config)


def _exported(model: Path, wanted: str | None) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Read the same of an export."""
    try:
        weights, metadata = read_network(model)
        config = {"network": json.loads(metadata.get("network", "{}"))}
        if (model.parent / CONFIG).exists():  # a part of an export, such as a tokenizer, has none
            config = read_config(model.parent)
    except (ExportError, ValueError, RecursionError) as error:
        raise UserError(str(error) if isinstance(error, ExportError) else f"{model} is damaged: {error}.") from error
    if name := first_not_finite({"state_dict": weights}):
        raise UserError(f"{model} is refused: its weight {name} is not finite; export another run.")
    if weights_hash(weights) != metadata.get("weights_hash"):
        raise UserError(f"{model} is damaged: its weights are not those that were written; export the run again.")
    kind = "raw" if metadata.get("weights") == "raw" else "ema"
    if wanted not in (None, kind):
        raise UserError(
            f"init.weights={wanted}: {model} holds {SPOKEN[kind]} weights alone: leave it out, or name the run."
        )
    step = metadata.get("step", "")
    origin = {
        "name": printable(metadata.get("experiment", "an export")),
        "weights": kind,
        "step": int(step) if step.isascii() and step.isdecimal() else None,
    }
    return weights, origin, renewed(config)


def _node(config: dict[str, Any], key: str) -> dict[str, Any]:
    node = config.get(key)
    return node if isinstance(node, dict) else {}


def _differing(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Write the settings of the network that are others there, as they are typed."""
    return " ".join(
        f"network.{key}={json.dumps(value).replace(' ', '')}"
        for key, value in there.items()
        if isinstance(value, int | float | list) and here.get(key, value) != value
    )
