"""What the command lines of all commands share: flags, help, names, and an existing run with overrides on top."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import QuotedString
from omegaconf import DictConfig, OmegaConf

from files.words import count
from launch.checking import check_values
from launch.compose import (
    apply_overrides,
    compose_config,
    literal,
    merged,
    parse,
    quoted,
)
from launch.errors import UserError
from launch.names import checked_name
from launch.options import experiments, keys_set_by, tell_set_in_vain
from launch.output import as_typed
from launch.paths import absolute_path, is_there, make_absolute
from launch.received import note_typed
from launch.resolvers import register_resolvers
from launch.run_folder import RunFolder, is_main_process
from launch.settled import check_use
from launch.trained_parts import TRAINED

MAX_BATCH = 10_000  # more images at a time are a slip of the keyboard
MULTIRUN = {"-m", "--multirun"}
# Hydra's flags, and whether a value follows.
HYDRA_FLAGS = {
    **dict.fromkeys(
        ("-m", "--multirun", "-r", "--run", "--resolve", "--hydra-help", "--version", "--info", "-i"), False
    ),
    **dict.fromkeys(("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name"), True),
    **dict.fromkeys(("-cd", "--config-dir", "--experimental-rerun"), True),
    **dict.fromkeys(("-sc", "--shell-completion"), False),
}


def as_given(overrides: Any) -> list[str]:
    """Return the overrides in Hydra's config as they were given: a list of it has interpolations replaced by their values."""
    plain: Any = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in plain]


def taken(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    """Take the arguments of a key out of a command line.

    Returns:
        The last value that the key was given, and the other arguments.
    """
    values = [a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")]
    return (values[-1] if values else None), [a for a in arguments if not a.startswith(f"{key}=")]


def show_help(arguments: Sequence[str], text: Callable[[], str]) -> None:
    """Print what ``--help`` shows and end the process, where that is asked for.

    Args:
        text: Makes what is shown.
    """
    if {"-h", "--help"} & set(arguments):
        print(as_typed(text()))  # noqa: T201
        sys.exit(0)


def split_flags(arguments: list[str], known: Mapping[str, bool] = HYDRA_FLAGS) -> tuple[list[str], list[str]]:
    """Split a command line into flags with their values, and overrides.

    Args:
        known: The flags that are understood, and whether a value follows each.

    Raises:
        UserError: A flag is none: settings have no dashes.
    """
    flags, overrides, rest = [], [], list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not argument.startswith("-"):
            overrides.append(argument)
        elif name in known:
            flags += [argument, *([rest.pop(0)] if known[name] and not equals and rest else [])]
        else:
            key = name.lstrip("-").replace("-", "_")
            value = value or (rest[0] if rest and not rest[0].startswith("-") and "=" not in rest[0] else "VALUE")
            raise UserError(f"{argument} is no option: settings are written without dashes, as in {key}={value}.")
    return flags, overrides


def from_here(override: str) -> str:
    """Make a path that is typed absolute: what is written of it is read in other folders too."""
    key, value = parse(override)
    path = absolute_path(key, value.text if isinstance(value, QuotedString) else value)
    return override if path is None else f"{override.partition('=')[0]}={quoted(path)}"


def check_names(overrides: list[str]) -> None:
    """Check what names the folders of a run and of a sweep."""
    for key, value in map(parse, overrides):
        if key in ("name", "sweep") and not str(value).startswith("${"):
            checked_name(key, value.text if isinstance(value, QuotedString) else "" if value is None else str(value))


def require_experiment(overrides: list[str]) -> None:
    """Check that a command line says what to train."""
    if taken(overrides, "experiment")[0] is None:
        raise UserError(f"say what to train with experiment=NAME: choose one of {', '.join(experiments())}.")


def run_config(run: RunFolder) -> DictConfig:
    """Return a run's recorded config in a form that resolves outside Hydra.

    Returns:
        The config with its name and folder filled in.
    """
    return filled_in(run, run.config(), [])


def filled_in(run: RunFolder, config: DictConfig, overrides: list[str]) -> DictConfig:
    """Fill in what Hydra, or an automatic choice, had filled in when a run began: also its judge, where that is still there.

    Args:
        config: Its config as recorded.
        overrides: Overrides in it whose values stay.

    Returns:
        A config that resolves outside Hydra.
    """
    register_resolvers()
    config, record = config.copy(), run.record
    given = {parse(override)[0] for override in overrides}
    if "name" not in given:
        config.name = str(record.get("name", run.path.parent.name))
    config.paths.run = literal(run.path)
    judge = record.get("judge") or {}
    judge_is_there = os.path.isfile(judge.get("path", ""))  # noqa: PTH113 - also of a path that the system refuses to look at
    parts = {**(record.get("parts") or {}), **({"classifier": judge} if judge_is_there else {})}
    for key, part in parts.items():
        if key in config and key not in given:  # auto may mean another one by now
            config[key] = literal(part["path"])
    return config


def tell_choices(config: DictConfig, parts: Iterable[str] = ("module", "callbacks")) -> None:
    """Print which trained network each ``auto`` stands for, on rank 0, each one once.

    Args:
        parts: The nodes that are used.
    """
    if not is_main_process():
        return
    for key in (*TRAINED, "classifier"):
        if config.get(key) == "auto" and (found := choices_of(config, key, parts)):
            _tell_choice(key, found[0])


def choices_of(config: DictConfig, key: str, parts: Iterable[str] = ("module", "callbacks")) -> list[str | None]:
    """Return the file that a config key means wherever it is used, such as ``classifier``; None where it means none.

    Args:
        parts: The nodes that are used.
    """
    return [found for part in parts for found in _resolved(config.get(part), f"${{trained_{key}:")]


def _resolved(node: Any, start: str) -> list[Any]:
    """Return the values of all strings below a node that begin as a resolver's call does."""
    if OmegaConf.is_dict(node):
        raws: Any = OmegaConf.to_container(node, resolve=False)
        found = [
            [node[name]] if str(raw).startswith(start) else _resolved(node._get_node(name), start)
            for name, raw in raws.items()
        ]
        return [value for values in found for value in values]
    return []


@cache
def _tell_choice(key: str, path: str | None) -> None:
    if path is None:
        print(f"{key}=auto: no finished run fits; none is used", flush=True)  # noqa: T201
        return
    steps = RunFolder(Path(path).parent.parent).record.get("step")
    print(f"{key}=auto: {path}" + ("" if steps is None else f" ({count(steps, 'step')})"), flush=True)  # noqa: T201


def whole_number(own: Mapping[str, str | None], key: str, maximum: int, minimum: int = 1) -> int:
    """Read a whole number from the command line.

    Args:
        maximum: Its largest value.
        minimum: Its smallest value.

    Raises:
        UserError: It is none, too small or too large.
    """
    text = str(own[key])
    if not text.isdecimal() or len(text) > len(str(maximum)) or not minimum <= int(text) <= maximum:
        raise UserError(f"{key}={text} must be a whole number of at least {minimum} and at most {maximum}.")
    return int(text)


def is_true(own: dict[str, str | None], key: str) -> bool:
    """Read a switch from the command line.

    Returns:
        Whether it is on.

    Raises:
        UserError: It is neither ``true`` nor ``false``.
    """
    if own[key] not in ("true", "false"):
        raise UserError(f"{key}={own[key]} takes true or false.")
    return own[key] == "true"


def own_arguments(
    arguments: list[str], defaults: dict[str, str | None], usage: str
) -> tuple[str, dict[str, str | None], list[str]]:
    """Take what is a script's own out of its command line.

    Args:
        defaults: The script's own keys with their defaults, besides ``run``.

    Returns:
        What ``run`` names, the script's own values, and the overrides.

    Raises:
        UserError: No run is named, or several.
    """
    show_help(arguments, lambda: usage)
    split_flags(arguments, {})
    folder, arguments = taken(arguments, "run")
    if folder is None:
        raise UserError("say which run with run=DIR, the folder that train.py printed at its end.")
    if "," in folder and not is_there("run", folder):
        raise UserError(
            f"run={folder} names several runs: only python evaluate.py -m takes more than one, to compare them."
        )
    own = dict(defaults)
    for key in defaults:
        value, arguments = taken(arguments, key)
        own[key] = value if value is not None else own[key]
    register_resolvers()
    note_typed(arguments)
    return folder, own, arguments


def run_arguments(
    arguments: list[str], defaults: dict[str, str | None], usage: str
) -> tuple[RunFolder, DictConfig, dict[str, str | None], list[str]]:
    """Read the command line of a script that works on an existing run.

    Args:
        defaults: The script's own keys with their defaults, besides ``run``.

    Returns:
        The run, its config with the overrides applied, the script's own values, and the overrides.

    Raises:
        UserError: A key is unknown or the run is not usable.
    """
    folder, own, overrides = own_arguments(arguments, defaults, usage)
    return *overridden_run(folder, overrides), own, overrides


def overridden_run(folder: str, overrides: list[str]) -> tuple[RunFolder, DictConfig]:
    """Read a run's config.

    Args:
        folder: The run's folder.
        overrides: What is to be other now.

    Returns:
        The run, and its config with the overrides applied.

    Raises:
        UserError: A key is unknown or settled by the training, or the run is not usable.
    """
    if any(parse(override)[0].partition(".")[0] == "init" for override in overrides):
        raise UserError("init= says what a new run begins with, and this one has begun: leave it out.")
    run = RunFolder.existing(folder, "run")
    recorded = run.overrides()
    left_out: list[str] = []
    fresh = compose_config(merged(recorded, overrides), recorded=recorded, left_out=left_out)
    if is_main_process() and any(keys_set_by(*map(str, parse(override))) for override in overrides):  # as by task=
        tell_set_in_vain(left_out, recorded)
    own = filled_in(run, run.config(), overrides)
    config = apply_overrides(own, recorded, overrides, fresh)
    check_use(run.path, own, config, overrides)
    make_absolute(config)
    check_values(fresh)
    return run, config
