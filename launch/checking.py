"""Checks the values of a config against the annotations of the arguments that take them, before anything is built."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
import typing
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import SchemaError

from generative.ranges import BelowOne, Count, NonNegative, Positive
from launch.errors import UserError
from launch.received import own

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
        "precision": Literal["32-true", "16-mixed", "bf16-mixed", "32", 32],
    },
    "torch.optim.AdamW": {
        "lr": Positive,
        "betas": tuple[BelowOne, BelowOne],
        "eps": Positive,
        "weight_decay": NonNegative,
    },
}
WORDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "none_required": "null",
    "missing": "longer",
}


def check_values(config: DictConfig) -> None:
    """Check each number, word and list of a config against the annotation of the argument that takes it.

    Types are not converted: ``2.0`` is no whole number, ``true`` no number, and no number may be nan. Values that cannot be
    resolved yet, and arguments without an annotation, are left to the objects themselves.

    Args:
        config: A composed config; a value that does not fit is named by the key that sets it.
    """
    _check_node(config, config)


def argument_checks(target: str) -> dict[str, Callable[[Any], str | None]]:
    """Return what checks the arguments of a class or function.

    Args:
        target: Its full name.

    Returns:
        By name of the argument, a function that says what a plain value must be, or None where it fits.
    """
    return {name: functools.partial(_reason, kind) for name, kind in _types(target).items()}


def _check_node(node: DictConfig, config: DictConfig) -> None:
    target = OmegaConf.select(node, "_target_")
    checks = argument_checks(target) if target in own().arguments else {}
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


def _reason(kind: TypeAdapter[Any], value: Any) -> str | None:
    """Say what a value must be; of a union, all that it may be."""
    try:
        kind.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        reasons: dict[str, None] = {}
        for entry in error.errors():
            if entry["type"] == "needs_python_object":  # only an object is of this kind, and no value of a config
                continue
            item = next((f"item {part} " for part in entry["loc"] if isinstance(part, int)), "")
            words = WORDS.get(entry["type"]) or re.sub(r"^Input should (be )?", "", entry["msg"])
            reasons[f"{item}must be {words}"] = None
        first, *others = reasons or ["is of no use here"]
        return " or ".join([first, *(other.removeprefix("must be ") for other in others)]) + "."
    return None


@functools.cache
def _types(target: str) -> dict[str, TypeAdapter[Any]]:
    """Return the checks of the arguments of a class or function by name."""
    hints = _hints(get_object(target)) | NARROWER.get(target, {})
    settings = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    result = {}
    for name, hint in hints.items():
        try:
            result[name] = TypeAdapter(hint, config=settings)
        except (PydanticUserError, SchemaError):
            continue
    return result


def _hints(target: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(target) or not inspect.isclass(target):
        return typing.get_type_hints(target, include_extras=True)
    hints: dict[str, Any] = {}
    for owner in target.__mro__:
        function = vars(owner).get("__init__")
        if function is None:
            continue
        with suppress(NameError):  # some libraries name types that they import for type checkers only
            hints = typing.get_type_hints(function, include_extras=True) | hints
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values()):
            break
    return hints
