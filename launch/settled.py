"""What a trained run has settled: no evaluation changes what its weights mean, and none sets what training alone reads."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.compose import parse
from launch.errors import UserError
from launch.evaluation import has_test_hooks
from launch.history import FIXED, flat
from launch.named import named
from launch.options import groups
from launch.received import TARGET
from launch.settings import short_value

CHOSEN_IN_USE = frozenset({"module.task", "module.labels"})  # what a network can do that was trained for more
ONLY_TRAINING = re.compile(
    r"(module\.)?(optimizer|learning_rate|learning_rate_factor|objective|compile|seed|total_steps)(\.|$)"
    r"|data\.(seed|global_batch_size)$"
    r"|trainer\.(max_|min_|val_check_|check_val_|limit_train_|limit_val_|num_sanity_|gradient_clip_|accumulate_|log_every_)\w+$"
    r"|(network|bottleneck)\.(\w+\.)*dropout$"
)
_ABSENT = object()


def check_use(trained: Path, recorded: DictConfig, config: DictConfig, overrides: Sequence[str]) -> None:
    """Check what is to be other in the use of a trained run.

    Args:
        trained: Run folder or exported folder.
        recorded: Its config.
        config: The same with the overrides applied.

    Raises:
        UserError: An override makes another network of the weights, or sets what only training reads.
    """
    has_weights = OmegaConf.select(config, f"network.{TARGET}") == OmegaConf.select(recorded, f"network.{TARGET}")
    for override in overrides:
        typed = parse(override)[0].split("@")[-1].replace("/", ".")
        changed = _changed(typed, recorded, config)
        if changed and _is_training_callback(typed, recorded, config):
            raise UserError(f"{override} has no effect here: {typed} takes part in training alone; leave it out.")
        for key in [typed] if changed and typed in groups() and typed != "module" else changed:
            if ONLY_TRAINING.match(key):
                raise UserError(f"{override} has no effect here: only training reads {key}; leave it out.")
            if has_weights and FIXED.match(key) and key not in CHOSEN_IN_USE:
                before = _value(recorded, key)
                what = f"another {key}" if OmegaConf.is_dict(before) else f"{key}={short_value(before)}"
                raise UserError(
                    f"{override} cannot be set in the use of {trained}: its weights were trained with {what}; leave it out, "
                    "or train another run."
                )


def _changed(typed: str, recorded: DictConfig, config: DictConfig) -> list[str]:
    """Return the keys at or below one whose values differ."""
    old, new = (flat(_raw(each, typed), typed) for each in (recorded, config))
    differing = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    return [key for key in differing if _value(recorded, key) != _value(config, key)]


def _raw(config: DictConfig, key: str) -> Any:
    """Return what stands at a key, nothing below it resolved; an empty mapping where there is nothing."""
    parent, _, name = key.rpartition(".")
    above = OmegaConf.select(config, parent) if parent else config
    if not OmegaConf.is_dict(above) or name not in above:
        return {}
    node: Any = above._get_node(name)
    return OmegaConf.to_container(node, resolve=False) if OmegaConf.is_config(node) else node._value()


def _value(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:  # it follows what is no longer there
        return _raw(config, key)


def _is_training_callback(typed: str, recorded: DictConfig, config: DictConfig) -> bool:
    group, _, name = typed.partition(".")
    if group != "callbacks" or not name:
        return False
    key = f"{group}.{name.partition('.')[0]}.{TARGET}"
    target = OmegaConf.select(config, key) or OmegaConf.select(recorded, key)
    return target is not None and not has_test_hooks(named(target))
