"""A degradation that a person asks for by name and severity: one of a run's own, or of ``conf/degradation``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor

from generative.degradations import Degradation, Mixture
from generative.randomness import IndexRandomness
from generative.types import Degraded
from launch.errors import UserError, as_user_error, near_matches
from launch.options import groups
from launch.received import CONF_DIR, TARGET
from launch.resolvers import register_resolvers

RANGES = {"train", "evaluation"}  # keys of a severity that has a range for training
STEPS = "steps"


def degradations_of(node: Any) -> dict[str, Any]:
    """Take what a run was trained with apart, so that each of it can be asked for.

    Args:
        node: ``degradation`` of its config, plain containers or None.

    Returns:
        Configs of degradations by name: each step of a mixture, or else the whole by the names of its steps.
    """
    if not node:
        return {}
    steps = {name: step for name, step in (node.get(STEPS) or {}).items() if step is not None}
    if issubclass(get_class(node[TARGET]), Mixture):
        return {name: step for name, step in steps.items() if (node.get("weights") or {}).get(name, 1)}
    return {"+".join(steps) or node[TARGET].rpartition(".")[2]: node}


@cache
def known_degradations() -> dict[str, Any]:
    """Return the degradations of ``conf/degradation``: their configs by name."""
    register_resolvers()
    files = {name: CONF_DIR / "degradation" / f"{name}.yaml" for name in groups()["degradation"]}
    return {name: OmegaConf.to_container(OmegaConf.load(file), resolve=True) for name, file in files.items()}


def chosen(name: str, own: Mapping[str, Any]) -> Any:
    """Find a degradation by its name.

    Args:
        own: Those of the run, which come first.

    Raises:
        UserError: There is none of the name.
    """
    there = {**known_degradations(), **own}
    if name not in there:
        raise UserError(f"{name} is no degradation: {near_matches(name, there)}")
    return there[name]


def severities(node: Any) -> bool:
    """Say whether a degradation has a severity to choose: a value with a range for training."""
    return any(True for _ in _ranges(node))


def at_severity(node: Any, severity: float) -> tuple[Any, dict[str, float]]:
    """Set each value that has a range for training.

    Args:
        node: Config of a degradation, plain containers.
        severity: 0 is the lower end of the ranges and 1 the upper one.

    Returns:
        The config, and the values by key.
    """
    values: dict[str, float] = {}

    def replaced(key: str, node: Any) -> Any:
        if isinstance(node, dict):
            if node.keys() == RANGES:
                low, high = node["train"] if isinstance(node["train"], list) else (node["train"],) * 2
                value = low + severity * (high - low)
                values[key] = round(value) if isinstance(low, int) and isinstance(high, int) else round(value, 4)
                return values[key]
            return {name: replaced(name, each) for name, each in node.items()}
        return [replaced(key, each) for each in node] if isinstance(node, list) else node

    return replaced("", node), values


def degrade_one(degradation: Degradation, image_1CHW: Tensor, seed: int, number: int) -> Degraded:
    """Degrade a picture by its number.

    Args:
        image_1CHW: (1, C, H, W) image in [-1, 1], in channels of its own, whatever a network sees: rows of them would share one
            draw, and equal channels would have draws that average out.

    Raises:
        ValueError: The picture is too small for it.
    """
    index, device = torch.tensor([number]), image_1CHW.device
    return degradation(image_1CHW, IndexRandomness.for_images(seed, "degradation/generate", index, device))


def degrade(
    image_1CHW: Tensor, node: Any, severity: float | None, seed: int, channels: int
) -> tuple[Degraded, dict[str, float]]:
    """Degrade a picture.

    Args:
        image_1CHW: (1, C, H, W) image in [-1, 1], in channels of its own.
        node: Config of a degradation, plain containers.
        severity: From 0, the mildest of training, to 1, the most severe, whichever end of the ranges that is in numbers; None
            is that of evaluation.
        seed: Seed of the draws.
        channels: Channels that the model was trained with.

    Returns:
        What it becomes, and the values that the severity stands for.

    Raises:
        UserError: The picture is too small for it, or of too few channels.
    """

    def made(node: Any) -> Degraded:
        with as_user_error():
            degradation: Degradation = instantiate(OmegaConf.create(node), _convert_="all")
            degradation.check_images(min(image_1CHW.shape[-2:]), channels)
        return degrade_one(degradation, image_1CHW, seed, 0)

    if severity is None:
        return made(node), {}
    if not 0 <= severity <= 1:
        raise UserError(f"severity={severity:g} must be a number from 0 to 1.")
    low, high = ((made(at_severity(node, end)[0]).image - image_1CHW).square().mean() for end in (0.0, 1.0))
    node, values = at_severity(node, severity if high >= low else 1 - severity)
    return made(node), values


def _ranges(node: Any) -> Iterator[Any]:
    if isinstance(node, dict) and node.keys() == RANGES:
        yield node
    elif isinstance(node, dict | list):
        for each in node.values() if isinstance(node, dict) else node:
            yield from _ranges(each)
