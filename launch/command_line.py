"""Reads the command lines of the entry scripts before Hydra does: help, resume, and one-sentence errors."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf, read_write

from launch.compose import (
    apply_overrides,
    check_types,
    compose_config,
    experiments,
    help_text,
    literal,
    merged,
    parse,
    quoted,
    register_resolvers,
    values_of,
)
from launch.data_check import KEY as DATA_CHANGED
from launch.errors import UserError
from launch.names import checked_name, tell_swept
from launch.output import as_typed
from launch.paths import absolute_path, make_absolute
from launch.received import note_typed
from launch.run_folder import RunFolder, identity, is_main_process, newest_unfinished

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
THIS_TIME = ("resume", DATA_CHANGED)  # keys that say how to begin this time, and nothing of the run


def _take(arguments: list[str], key: str) -> tuple[str | None, list[str]]:
    values = [a.partition("=")[2] for a in arguments if a.startswith(f"{key}=")]
    return (values[-1] if values else None), [a for a in arguments if not a.startswith(f"{key}=")]


def training_arguments(arguments: list[str]) -> list[str]:
    """Check the command line of ``train.py`` and turn ``resume=`` into the run's own overrides.

    Args:
        arguments: What follows ``train.py``.

    Returns:
        Arguments for Hydra.
    """
    register_resolvers()
    if int(os.environ.get("LOCAL_RANK", "0")) > 0:  # started by rank 0 with arguments that are ready
        return arguments
    show_help(arguments, help_text)
    flags, overrides = split_flags(arguments)
    if set(flags) - MULTIRUN:  # Hydra shows something, such as the config with --cfg job
        compose_config([value for o in overrides for value in values_of(o)[:1]])
        return arguments
    if MULTIRUN & set(arguments):
        check_multirun([a for a in arguments if a not in MULTIRUN])
        return arguments
    resume, overrides = _take(arguments, "resume")
    note_typed(overrides)
    check_names(overrides)
    if resume == "auto":
        found = _unfinished(overrides)
        resume = str(found.path) if found else None
        if is_main_process():
            what = resume or "there is no run to go on with; a new one begins"
            print(f"resume=auto: {what}", flush=True)  # noqa: T201
    elif resume not in (None, "null"):
        return _resume_arguments(resume, overrides)
    if resume and resume != "null":
        return _resume_arguments(resume, [o for o in overrides if o.startswith(f"{DATA_CHANGED}=")])
    _require_experiment(overrides)
    compose_config(overrides)
    check_types(overrides)
    return overrides


def show_help(arguments: Sequence[str], text: Callable[[], str]) -> None:
    """Print what ``--help`` shows and end the process, where that is asked for.

    Args:
        arguments: The command line.
        text: Makes what is shown.
    """
    if {"-h", "--help"} & set(arguments):
        print(as_typed(text()))  # noqa: T201
        sys.exit(0)


def split_flags(arguments: list[str], known: Mapping[str, bool] = HYDRA_FLAGS) -> tuple[list[str], list[str]]:
    """Split a command line into flags with their values, and overrides.

    Args:
        arguments: The arguments.
        known: The flags that are understood, and whether a value follows each.

    Returns:
        Flags and overrides.

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


def check_multirun(arguments: list[str]) -> None:
    """Check the command line of a sweep before its first job, every value of every override, and note what it varies.

    Args:
        arguments: The arguments without ``-m``; some with several values.

    Raises:
        UserError: A value is wrong, or ``resume=`` is given.
    """
    if _take(arguments, "resume")[0] is not None:
        raise UserError(
            "leave out resume= with -m: a sweep that is started again skips what is done and resumes the rest."
        )
    _require_experiment(arguments)
    choices = [values for argument in arguments if (values := values_of(argument))]
    first = [values[0] for values in choices]
    space = compose_config(first, with_hydra=True).hydra.sweeper.get("params") or {}
    tell_swept([*(argument.partition("=")[0] for argument in arguments if len(values_of(argument)) != 1), *space])
    for position, values in enumerate(choices):
        for value in values if position == 0 else values[1:]:
            job = [*first[:position], value, *first[position + 1 :]]
            check_names(job)
            compose_config(job)
            check_types(job)


def check_names(overrides: list[str]) -> None:
    """Check what names the folders of a run and of a sweep.

    Args:
        overrides: Hydra overrides.
    """
    for key, value in map(parse, overrides):
        if key in ("name", "sweep") and not str(value).startswith("${"):
            checked_name(key, value.text if isinstance(value, QuotedString) else "" if value is None else str(value))


def sweep_config(arguments: list[str]) -> DictConfig | None:
    """Return how a command line's sweep runs.

    Args:
        arguments: Checked arguments of ``train.py``.

    Returns:
        The ``hydra`` node, with ``sweep.dir`` and ``sweeper``; None for a single run.
    """
    if not MULTIRUN & set(arguments):
        return None
    choices = [values_of(argument) for argument in arguments if not argument.startswith("-")]
    return compose_config([values[0] for values in choices if values], with_hydra=True).hydra


def _require_experiment(overrides: list[str]) -> None:
    if _take(overrides, "experiment")[0] is None:
        raise UserError(f"say what to train with experiment=NAME: choose one of {', '.join(experiments())}.")


def _unfinished(overrides: list[str]) -> RunFolder | None:
    _require_experiment(overrides)
    config = compose_config(overrides, with_hydra=True)
    name = _take(overrides, "name")[0] or _take(overrides, "experiment")[0]
    if _take(overrides, "hydra.run.dir")[0] is None:
        return newest_unfinished(Path(config.paths.outputs) / str(name), overrides)
    run = RunFolder(Path(config.hydra.run.dir).resolve())
    record = run.record
    same = record.get("overrides") == identity(overrides)
    return run if same and run.checkpoint.exists() and not record.get("finished") else None


def _resume_arguments(folder: str, overrides: list[str]) -> list[str]:
    run = RunFolder.existing(folder, "resume")
    overrides = [_from_here(o) for o in overrides]
    keys = {parse(o)[0] for o in overrides}
    if "experiment" in keys:
        raise UserError("resume= takes its experiment from the run: leave out experiment=.")
    if "hydra.run.dir" in keys:
        raise UserError("resume= goes on in the run's own folder: leave out hydra.run.dir=.")
    own = [o for o in run.overrides() if parse(o)[0] not in (*THIS_TIME, "hydra.run.dir")]
    result = merged(own, overrides)
    compose_config(result)
    check_types(result)
    return [*result, f"resume={quoted(run.path)}", f"hydra.run.dir={quoted(run.path)}"]


def _from_here(override: str) -> str:
    """Make a path that is typed at a resume absolute: the run may have begun with the same words in another folder."""
    key, value = parse(override)
    path = absolute_path(key, value.text if isinstance(value, QuotedString) else value)
    return override if path is None else f"{override.partition('=')[0]}={quoted(path)}"


def current_run(config: DictConfig) -> tuple[RunFolder, DictConfig, list[str], DictConfig]:
    """Return the run that Hydra started, with its config: when resumed, the one in force with the new overrides on top.

    Args:
        config: What Hydra composed.

    Returns:
        Run folder; config; what it was composed from; and the config as it is recorded, with nothing filled in.
    """
    hydra: Any = HydraConfig.get()
    run = RunFolder(Path(hydra.runtime._get_node("output_dir")._value()))  # as it is: a ${ in it is no interpolation
    overrides = [o for o in hydra.overrides.task if parse(o)[0] not in THIS_TIME]
    _prepare_child_processes(list(hydra.overrides.task), run)
    if not config.resume:
        make_absolute(config)
        return run, config, overrides, config
    return run, *resumed_config(run, overrides, config[DATA_CHANGED])


def resumed_config(
    run: RunFolder, overrides: list[str], data_changed: str | None = None
) -> tuple[DictConfig, list[str], DictConfig]:
    """Put overrides on top of the config in force of a run that is to go on.

    Args:
        run: The run.
        overrides: The overrides; those of the config in force may be among them.
        data_changed: What to do this time where the data are others.

    Returns:
        Config, overrides and config as it is recorded: see ``current_run``.
    """
    recorded = run.overrides()
    known, given = ({parse(override)[0]: override for override in each} for each in (recorded, overrides))
    new = [override for key, override in given.items() if known.get(key) != override]
    in_force = apply_overrides(run.config(), recorded, new)
    make_absolute(in_force)
    config = filled_in(run, in_force, new)
    config.resume = literal(run.path)
    if data_changed is not None:
        OmegaConf.update(config, DATA_CHANGED, data_changed, force_add=True)
    return config, merged(recorded, new), in_force


def keep_config(run: RunFolder, config: DictConfig, overrides: list[str]) -> None:
    """Write what a new run is composed of to its folder, in Hydra's layout.

    Args:
        run: The run folder, held for writing.
        config: The composed config.
        overrides: What it was composed from.

    Raises:
        UserError: The folder holds a run that got somewhere.
    """
    if not is_main_process():
        return
    if run.checkpoint.exists():
        raise UserError(
            f"{run.path} holds a run already: go on with it with {shlex.quote(f'resume={run.path}')}, or choose another "
            "folder with hydra.run.dir=DIR."
        )
    run.write_config(config, overrides)


def _prepare_child_processes(overrides: list[str], run: RunFolder) -> None:
    # Lightning starts the other ranks with this process's arguments: they must run this job only, in its folder
    sys.argv[1:] = [*overrides, "hydra.mode=RUN"]
    node: Any = HydraConfig.get().run
    with read_write(node):
        inner = quoted(run.path, Quote.double)[1:-1]  # Lightning puts the value, once read, in double quotes
        node.dir = literal(inner)


def run_config(run: RunFolder) -> DictConfig:
    """Return a run's recorded config in a form that resolves outside Hydra.

    Args:
        run: The run.

    Returns:
        The config with its name and folder filled in.
    """
    return filled_in(run, run.config(), [])


def filled_in(run: RunFolder, config: DictConfig, overrides: list[str]) -> DictConfig:
    """Fill in what Hydra, or an automatic choice, had filled in when a run began.

    Args:
        run: The run.
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
    tokenizer = (record.get("parts") or {}).get("tokenizer")
    if tokenizer and "tokenizer" not in given:  # auto may mean another one by now
        config.tokenizer = tokenizer["path"]
    return config


def tell_choices(config: DictConfig, parts: Iterable[str] = ("module", "callbacks")) -> None:
    """Print which trained network each ``auto`` stands for, on rank 0, each one once.

    Args:
        config: The composed config.
        parts: The nodes that are used.
    """
    if not is_main_process():
        return
    for key in ("tokenizer", "classifier"):
        nodes = [config.get(part) for part in parts]
        if config.get(key) == "auto" and (
            found := [v for node in nodes for v in _resolved(node, f"${{trained_{key}:")]
        ):
            _tell_choice(key, found[0])


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
    print(f"{key}=auto: {path}" + ("" if steps is None else f" ({steps:,} steps)"), flush=True)  # noqa: T201


def run_arguments(
    arguments: list[str], defaults: dict[str, str | None], usage: str
) -> tuple[RunFolder, DictConfig, dict[str, str | None], list[str]]:
    """Read the command line of a script that works on an existing run.

    Args:
        arguments: What follows the script's name.
        defaults: The script's own keys with their defaults, beside ``run``.
        usage: What ``--help`` prints.

    Returns:
        The run, its config with the overrides applied, the script's own values, and the overrides.

    Raises:
        UserError: A key is unknown or the run is not usable.
    """
    show_help(arguments, lambda: usage)
    split_flags(arguments, {})
    folder, arguments = _take(arguments, "run")
    if folder is None:
        raise UserError("say which run with run=DIR, the folder that train.py printed at its end.")
    if "," in folder and not Path(folder).expanduser().exists():
        raise UserError(
            f"run={folder} names several runs: only python evaluate.py -m takes more than one, to compare them."
        )
    own = dict(defaults)
    for key in defaults:
        value, arguments = _take(arguments, key)
        own[key] = value if value is not None else own[key]
    register_resolvers()
    note_typed(arguments)
    run = RunFolder.existing(folder, "run")
    config = apply_overrides(run_config(run), run.overrides(), arguments)
    make_absolute(config)
    check_types(run.overrides() + arguments)
    return run, config, own, arguments
