"""How a training starts: its command line is checked and its config composed, once, before anything is built of it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from launch.checking import check_values
from launch.command_line import as_given, check_names, filled_in, from_here, require_experiment, taken
from launch.compose import apply_overrides, compose_config, literal, merged, parse, quoted, without_hydra
from launch.data_check import KEY as DATA_CHANGED
from launch.errors import UserError
from launch.options import leave_out, tell_set_in_vain
from launch.paths import make_absolute
from launch.precision import settle_precision, tell_kept_precision
from launch.received import note_typed
from launch.run_folder import RunFolder, identity, is_main_process, newest_unfinished

THIS_TIME = ("resume", DATA_CHANGED)  # keys that say how to begin this time, and nothing of the run
OUR_HYDRA = ("hydra.run.dir", "hydra.mode")  # what a command line may say of Hydra that Hydra need not see to itself


def composed_start(overrides: list[str]) -> DictConfig:
    """Check the command line of a single training and compose its config.

    Args:
        overrides: The command line, without flags; ``resume=`` becomes the run's own overrides.

    Returns:
        The config with its ``hydra`` node.

    Raises:
        UserError: A setting is wrong, or there is nothing to resume where ``resume=`` names it.
    """
    if is_further_rank():  # started by rank 0 with arguments that are ready
        return compose_config(overrides, with_hydra=True)
    resume, overrides = taken(overrides, "resume")
    note_typed(overrides)
    check_names(overrides)
    if resume not in (None, "null", "auto"):
        return _checked(*_resume_overrides(str(resume), overrides))
    require_experiment(overrides)
    left_out: list[str] = []
    config = _checked(overrides, left_out=left_out)
    if resume == "auto":
        found = _unfinished(config, overrides)
        if is_main_process():
            what = found.path if found else "there is no run to continue; a new one begins"
            print(f"resume=auto: {what}", flush=True)  # noqa: T201
        if found:
            this_time = [o for o in overrides if o.startswith(f"{DATA_CHANGED}=")]
            return _checked(*_resume_overrides(str(found.path), this_time))
    if is_main_process():
        tell_set_in_vain(left_out, overrides)
    return config


def is_further_rank() -> bool:
    """Say whether rank 0 has started this process, for another rank of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) > 0


def is_plain(overrides: list[str]) -> bool:
    """Say whether a command line leaves all that Hydra does around a job as it is: its logging, folders and callbacks.

    Args:
        overrides: The command line, without flags.

    Returns:
        Whether a composed config is all that is needed to start.
    """
    keys = {override.partition("=")[0].lstrip("+~") for override in overrides}  # a path may hold signs of Hydra's
    return is_further_rank() or all(key in OUR_HYDRA or not key.startswith("hydra") for key in keys)


def hydra_arguments() -> tuple[list[str], Path]:
    """Return the command line with which Hydra composes the config in force once more, and the folder that it makes."""
    hydra, folder = HydraConfig.get(), _output_folder()
    others = [override for override in as_given(hydra.overrides.hydra) if parse(override)[0] != "hydra.run.dir"]
    return [*others, *as_given(hydra.overrides.task), f"hydra.run.dir={quoted(folder)}"], folder


def _output_folder() -> Path:
    hydra: Any = HydraConfig.get()
    return Path(hydra.runtime._get_node("output_dir")._value())  # as it is: a ${ in it is no interpolation


@contextmanager
def put_in_force(config: DictConfig) -> Iterator[DictConfig]:
    """Make a composed config that of this process, as Hydra does for a job that it has composed itself.

    Args:
        config: The config with its ``hydra`` node.

    Yields:
        The config without it.
    """
    HydraConfig.instance().set_config(config)
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = os.path.abspath(config.hydra.run.dir)  # noqa: PTH100 - as Hydra does
    HydraConfig.instance().set_config(config)
    try:
        yield without_hydra(config)
    finally:
        HydraConfig.instance().cfg = None


def _checked(overrides: list[str], recorded: Collection[str] = (), left_out: list[str] | None = None) -> DictConfig:
    config = compose_config(overrides, with_hydra=True, recorded=recorded, left_out=left_out)
    check_values(without_hydra(config))
    return config


def _unfinished(config: DictConfig, overrides: list[str]) -> RunFolder | None:
    """Find the run that ``resume=auto`` means: in the folder that is named, or the newest one of the experiment."""
    name = taken(overrides, "name")[0] or taken(overrides, "experiment")[0]
    if taken(overrides, "hydra.run.dir")[0] is None:
        return newest_unfinished(Path(config.paths.outputs) / str(name), overrides)
    run = RunFolder(Path(config.hydra.run.dir).resolve())
    record = run.record
    same = record.get("overrides") == identity(overrides)
    return run if same and run.checkpoint.exists() and not record.get("finished") else None


def _resume_overrides(folder: str, overrides: list[str]) -> tuple[list[str], list[str]]:
    """Return the overrides of a run that continues, and those of them that are recorded."""
    run = RunFolder.existing(folder, "resume")
    if run.chosen:
        raise UserError(
            f"resume={folder} was kept on the way, and a run continues from its newest checkpoint: name the run folder, or "
            f"begin another run with these weights, init={folder}."
        )
    overrides = [from_here(o) for o in overrides]
    keys = {parse(o)[0] for o in overrides}
    if "experiment" in keys:
        raise UserError("resume= takes its experiment from the run: leave out experiment=.")
    if "hydra.run.dir" in keys:
        raise UserError("resume= continues in the run's own folder: leave out hydra.run.dir=.")
    own = [o for o in run.overrides() if parse(o)[0] not in (*THIS_TIME, "hydra.run.dir")]
    return [*merged(own, overrides), f"resume={quoted(run.path)}", f"hydra.run.dir={quoted(run.path)}"], own


def current_run(config: DictConfig) -> tuple[RunFolder, DictConfig, list[str], DictConfig]:
    """Return the run that is started, with its config: when resumed, the one in force with the new overrides on top.

    Returns:
        Run folder; config; what it was composed from; and the config as it is recorded, with nothing filled in.
    """
    hydra: Any = HydraConfig.get()
    run = RunFolder(_output_folder())
    given = as_given(hydra.overrides.task)
    overrides = [o for o in given if parse(o)[0] not in THIS_TIME]
    _prepare_child_processes(given, run)
    if not config.resume:
        leave_out(config, overrides)  # Hydra may have composed it once more
        make_absolute(config)
        settle_precision(config)
        return run, config, overrides, config
    return run, *resumed_config(run, overrides, config, config[DATA_CHANGED])


def resumed_config(
    run: RunFolder, overrides: list[str], fresh: DictConfig | None = None, data_changed: str | None = None
) -> tuple[DictConfig, list[str], DictConfig]:
    """Put overrides on top of the config in force of a run that is to continue.

    Args:
        overrides: The overrides; those of the config in force may be among them.
        fresh: What is composed of all of them; None: it is composed here.
        data_changed: What to do this time where the data are others.

    Returns:
        Config, overrides and config as it is recorded: see ``current_run``.
    """
    recorded = run.overrides()
    known, given = ({parse(override)[0]: override for override in each} for each in (recorded, overrides))
    new = [override for key, override in given.items() if known.get(key) != override]
    in_force = apply_overrides(run.config(), recorded, new, fresh)
    make_absolute(in_force)
    settle_precision(in_force)
    tell_kept_precision(in_force, merged(recorded, new))
    config = filled_in(run, in_force, new)
    config.resume = literal(run.path)
    if data_changed is not None:
        OmegaConf.update(config, DATA_CHANGED, data_changed, force_add=True)
    return config, merged(recorded, new), in_force


def keep_config(run: RunFolder, config: DictConfig, overrides: list[str]) -> None:
    """Write what a new run is composed of to its folder, in Hydra's layout.

    Args:
        run: The run folder, held for writing.
        overrides: What it was composed from.

    Raises:
        UserError: The folder holds a run that got somewhere.
    """
    if not is_main_process():
        return
    if run.checkpoint.exists():
        raise UserError(
            f"{run.path} holds a run already: continue it with {shlex.quote(f'resume={run.path}')}, or choose another "
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
