"""Checks the values of a config against the annotations of the arguments that take them, before anything is built."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from generative.checks import Check, checks_of, hints_of
from generative.ranges import BelowOne, Count, NonNegative, Positive
from launch.errors import UserError
from launch.named import named
from launch.options import groups, preferred, targets
from launch.received import PARTIAL, TARGET, own

# What the annotations of others leave open, or what this project has no use for: its training data have no epochs.
NARROWER: dict[str, dict[str, Any]] = {
    "lightning.Trainer": {
        "max_steps": Count,
        "num_nodes": Count,
        "val_check_interval": Count,
        "log_every_n_steps": Count,
        "accumulate_grad_batches": Count,
        "num_sanity_val_steps": Literal[0],
        "max_epochs": Literal[-1] | None,
        "min_epochs": None,
        "check_val_every_n_epoch": None,
        "gradient_clip_val": NonNegative | None,
        "limit_val_batches": NonNegative | None,
        "limit_test_batches": NonNegative | None,
        "profiler": Literal["simple", "advanced", "pytorch"] | None,
        "precision": Literal["auto", "32-true", "16-mixed", "bf16-mixed", "32", 32],
    },
    "torch.optim.AdamW": {
        "lr": Positive,
        "betas": tuple[BelowOne, BelowOne],
        "eps": Positive,
        "weight_decay": NonNegative,
    },
}


def check_values(config: DictConfig) -> None:
    """Check each value of a config against the annotation of the argument that takes it: numbers, words, lists and classes.

    Values that cannot be resolved yet, and arguments without an annotation, are left to the objects themselves.

    Args:
        config: A composed config; a value that does not fit is named by the key that sets it.
    """
    check_kinds(config.get("module"), config)  # first: a network of another module may lack a part of its own as well
    _check_node(config, config)


def check_kinds(node: Any, config: DictConfig) -> None:
    """Check that what a class is built from are objects of the classes that its annotations name.

    Args:
        node: A node of the config; one without ``_target_`` is left alone.

    Raises:
        UserError: A part is of another class, or null; with the options that fit.
    """
    owner = node.get(TARGET) if OmegaConf.is_dict(node) else None
    if owner is None or owner not in own().arguments:
        return
    hints = hints_of(named(owner))
    for name in map(str, node):
        if kinds := _kinds(hints.get(name)):
            _check_part(owner, node._get_node(name), kinds, config)


@functools.cache
def argument_checks(target: str) -> dict[str, Check]:
    """Return what checks the arguments of a class or function by its full name; see ``checks_of``."""
    return checks_of(hints_of(named(target)) | NARROWER.get(target, {}))


def _check_node(node: DictConfig, config: DictConfig) -> None:
    target = OmegaConf.select(node, "_target_")
    checks = argument_checks(target) if target in own().arguments else {}
    check_kinds(node, config)
    for name in map(str, node):
        raw = node._get_node(name)
        if raw is None or raw._is_missing():
            continue
        if isinstance(raw, DictConfig) and not raw._is_none() and not raw._is_interpolation():
            _check_node(raw, config)
        if name not in checks:
            continue
        try:
            value = OmegaConf.to_container(node[name], resolve=True) if OmegaConf.is_config(node[name]) else node[name]
        except OmegaConfBaseException:
            continue
        if not _has_target(value) and (reason := checks[name](value)):
            shown = value if isinstance(value, str | float) else json.dumps(value)
            raise UserError(f"{_source(raw._get_full_key(None), config)}={shown} {reason}")


def _check_part(owner: str, raw: Any, kinds: Mapping[type, bool], config: DictConfig) -> None:
    part = OmegaConf.select(config, raw._get_full_key(None))
    if part is not None and not (OmegaConf.is_dict(part) and TARGET in part):
        return
    key = _source(raw._get_full_key(None), config)
    if part is None:
        if type(None) in kinds:
            return
        said = f"{key}=null leaves {owner.rpartition('.')[2]} without a part that it needs"
    else:
        if _is_kind(part[TARGET], part.get(PARTIAL, False), kinds):
            return
        said = f"{key}={part[TARGET].rpartition('.')[2]} is of another paradigm"
    fitting = [option for option, made in targets(key).items() if _is_kind(*made, kinds)] if key in groups() else []
    fitting.sort(key=lambda option: option != preferred(owner, key))
    wanted = f"choose {key}={_either(fitting)}" if fitting else f"it takes {_either([k.__name__ for k in kinds])}"
    raise UserError(f"{said}: {wanted}.")


def _either(names: list[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _kinds(hint: Any) -> dict[type, bool]:
    """Return the classes that an annotation lets an argument be of, each with whether it is made later, by the argument.

    An annotation that allows anything else, such as a number or a function of any kind, names none.
    """
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        found = [_kinds(each) for each in typing.get_args(hint)]
        return {kind: later for each in found for kind, later in each.items()} if all(found) else {}
    if typing.get_origin(hint) is collections.abc.Callable:
        return dict.fromkeys(_kinds(typing.get_args(hint)[1]).keys() - {type(None)}, True)
    is_own = inspect.isclass(hint) and hint.__module__ != "builtins" and not getattr(hint, "_is_protocol", False)
    return {hint: False} if hint is type(None) or is_own else {}


def _is_kind(target: str, partial: bool, kinds: Mapping[type, bool]) -> bool:
    made = named(target)
    if not inspect.isclass(made):
        return True  # a function says nothing of what it returns
    return any(issubclass(made, kind) and later == partial for kind, later in kinds.items())


def _has_target(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(map(_has_target, value.values()))
    return isinstance(value, list) and any(map(_has_target, value))


def _source(key: str, config: DictConfig) -> str:
    """Follow ``${...}`` to the key that the user sets."""
    while True:
        parent, _, name = key.rpartition(".")
        node: Any = (OmegaConf.select(config, parent) if parent else config)._get_node(name)
        found = re.fullmatch(r"\$\{([\w.]+)\}", str(node._value())) if node._is_interpolation() else None
        if found is None:
            return key
        key = found.group(1)
