"""Reads the command lines of the entry scripts before Hydra does: help, resume, and one-sentence errors."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, read_write

from launch.compose import (
    apply_overrides,
    check_types,
    compose_config,
    experiments,
    help_text,
    parse,
    register_resolvers,
)
from launch.errors import UserError
from launch.run_folder import RunFolder, identity, newest_unfinished


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
    if {"-h", "--help"} & set(arguments):
        print(help_text())  # noqa: T201
        sys.exit(0)
    if any(a.startswith("-") for a in arguments if a not in ("-m", "--multirun")):
        return arguments  # Hydra's own flags, such as --cfg
    if {"-m", "--multirun"} & set(arguments):
        return arguments
    resume, overrides = _take(arguments, "resume")
    if resume == "auto":
        found = _unfinished(overrides)
        resume = str(found.path) if found else None
    elif resume not in (None, "null"):
        return _resume_arguments(resume, overrides)
    if resume and resume != "null":
        return _resume_arguments(resume, [])
    _require_experiment(overrides)
    compose_config(overrides)
    check_types(overrides)
    return overrides


def _require_experiment(overrides: list[str]) -> None:
    if _take(overrides, "experiment")[0] is None:
        raise UserError(f"say what to train with experiment=NAME: choose one of {', '.join(experiments())}.")


def _unfinished(overrides: list[str]) -> RunFolder | None:
    _require_experiment(overrides)
    config = compose_config(overrides)
    folder, _ = _take(overrides, "hydra.run.dir")
    name = _take(overrides, "name")[0] or _take(overrides, "experiment")[0]
    if folder is None:
        return newest_unfinished(Path(config.paths.outputs) / str(name), overrides)
    run = RunFolder(Path(folder).resolve())
    record = run.record
    same = record.get("overrides") == identity(overrides)
    return run if same and run.checkpoint.exists() and not record.get("finished") else None


def _resume_arguments(folder: str, overrides: list[str]) -> list[str]:
    run = RunFolder.existing(folder, "resume")
    keys = {parse(o)[0] for o in overrides}
    if "experiment" in keys:
        raise UserError("resume= takes its experiment from the run: leave out experiment=.")
    own = [o for o in run.overrides() if parse(o)[0] not in keys and parse(o)[0] not in ("resume", "hydra.run.dir")]
    result = own + overrides
    compose_config(result)
    check_types(result)
    return [*result, f"resume='{run.path}'", f"hydra.run.dir='{run.path}'", "hydra.output_subdir=null"]


def current_run(config: DictConfig) -> tuple[RunFolder, DictConfig, list[str]]:
    """Return the run that Hydra started, its config (the recorded one when resumed) and its overrides.

    Args:
        config: What Hydra composed.

    Returns:
        Run folder, config, and the overrides that make the run what it is.
    """
    hydra = HydraConfig.get()
    run = RunFolder(Path(hydra.runtime.output_dir))
    overrides = list(hydra.overrides.task)
    _prepare_child_processes(overrides, run)
    if config.resume:
        recorded = run.overrides()
        new = [o for o in overrides if o not in recorded and parse(o)[0] != "resume"]
        config = apply_overrides(run_config(run), recorded, new)
        config.resume = str(run.path)
        overrides = recorded + new
    return run, config, identity(overrides)


def _prepare_child_processes(overrides: list[str], run: RunFolder) -> None:
    # Lightning starts the other ranks with this process's arguments: they must run this job only, in its folder
    sys.argv[1:] = [*overrides, "hydra.mode=RUN"]
    node: Any = HydraConfig.get().run
    with read_write(node):
        node.dir = str(run.path)


def run_config(run: RunFolder) -> DictConfig:
    """Return a run's recorded config in a form that resolves outside Hydra.

    Args:
        run: The run.

    Returns:
        The config with its name and folder filled in.
    """
    register_resolvers()
    config = run.config()
    config.name = run.record.get("name", run.path.parent.name)
    config.paths.run = str(run.path)
    tokenizer = run.record.get("parts", {}).get("tokenizer")
    if tokenizer:  # auto may mean another one by now
        config.tokenizer = tokenizer["path"]
    return config


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
    if {"-h", "--help"} & set(arguments):
        print(usage)  # noqa: T201
        sys.exit(0)
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
    run = RunFolder.existing(folder, "run")
    config = apply_overrides(run_config(run), run.overrides(), arguments)
    check_types(run.overrides() + arguments)
    return run, config, own, arguments
