"""Composes configs from the command line, and says in one sentence what is wrong with it."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from launch.errors import UserError, near_matches, one_line
from launch.former import FORMER_OPTIONS
from launch.new_keys import check_new_keys, is_argument
from launch.options import (
    FOR_NEW_RUNS,
    NONE,
    experiments,
    groups,
    keys_set_by,
    leave_out,
    optional_groups,
    without_null,
)
from launch.received import CONF_DIR, checked_config, override_parser
from launch.resolvers import register_resolvers

QUOTES = ("'", '"')
WRITTEN_TO = frozenset({"paths.outputs", "hydra.run.dir", "hydra.sweep.dir"})
_HOME = re.compile(r"(['\"]?)(~[\w.-]*)(?=[/'\"]|$)")
_UNKNOWN = re.compile(r"Could not (?:override|delete from config\.) '([^']+)'(?! is)")


def compose_config(
    overrides: list[str],
    config_name: str = "train",
    with_hydra: bool = False,
    recorded: Collection[str] = (),
    left_out: list[str] | None = None,
) -> DictConfig:
    """Compose a config.

    Args:
        config_name: Primary config.
        with_hydra: Keep the ``hydra`` node.
        recorded: Overrides of an earlier run. One whose key ``conf/`` no longer has in such a run is left out: its value
            stands in the run's recorded config. So is one of a part that is not there now, as a callback of another task.
        left_out: Takes the keys that the run does not read, and that were taken out.

    Returns:
        The config, interpolations not resolved.

    Raises:
        UserError: An unknown experiment, option or key, with near matches, or a malformed override.
    """
    register_resolvers()
    options = groups()
    for override in overrides:
        _check_choice(*parse(override), override, options)  # says in our words what is malformed
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), job_name=config_name, version_base="1.3"):
            config = compose(config_name, [*map(written_out, overrides)], return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        unknown = _UNKNOWN.search(str(error))
        gone = [o for o in recorded if o in overrides and unknown and parse(o)[0] == unknown.group(1)]
        if gone:
            return compose_config([o for o in overrides if o not in gone], config_name, with_hydra, recorded, left_out)
        raise UserError(_explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().clear()
    typed = [override for override in overrides if override not in recorded]
    gone = leave_out(config, typed)
    check_new_keys(config, typed)
    if left_out is not None:
        left_out += gone
    return config


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of a composed config without its ``hydra`` node."""
    copy = config.copy()
    with open_dict(copy):
        copy.pop("hydra", None)
    return copy


def _check_choice(key: str, value: Any, override: str, options: dict[str, list[str]]) -> None:
    """Check that a config group is set to options that there are, or is one that a run can be without."""
    if value is None and key.startswith("hydra/"):
        raise UserError(f"{override}: leave it out; without {key}=NAME Hydra takes its own.")
    if key not in options:
        return
    if override.startswith("~") or value in (None, NONE):
        if key not in optional_groups():
            raise UserError(f"{override}: no run is without {key}=NAME: {near_matches('', options[key])}")
        return
    for name in value if isinstance(value, list) else [value]:
        if name is None or isinstance(name, int | float) or not str(name) or str(name).startswith("_"):
            raise UserError(f"{override} does not exist: {near_matches(str(name), options[key])}")


def _explain(error: Exception, overrides: list[str]) -> str:
    text = str(error)
    missing = re.search(r"Could not find '([\w/]+)/([^'/]+)'", text) or re.search(
        r"In '[^']*': Could not find '([\w/]+)/([^']+)'", text
    )
    if missing:
        group, name = missing.groups()
        if group in ("hydra/launcher", "hydra/sweeper"):
            return (
                f"{group}={name} is not installed: pip install 'triptych[sweeps]' brings the launchers and the search."
            )
        now = FORMER_OPTIONS.get(f"{group}={name}", f"={name}").partition("=")[2]
        return f"{group}={name} does not exist: {near_matches(now, groups().get(group, []))}"
    there = re.search(
        r"An item is already at '([^']+)'|Multiple values for (\S+)\.|^(\S+) appears more than once", text
    )
    if there and (adding := [o for o in overrides if o.startswith("+") and parse(o)[0] in there.groups()]):
        key = parse(adding[0])[0]
        kind = "group" if key in groups() else "key"
        return f"{adding[0]}: {key} is a {kind} of this config already: write {adding[0].lstrip('+')}, without the +."
    if unknown := _UNKNOWN.search(text):
        return _explain_key(unknown.group(1), overrides, one_line(error))
    return one_line(error)


def _explain_key(key: str, overrides: list[str], message: str) -> str:
    others = [o for o in overrides if parse(o)[0] != key]
    if others == overrides:  # the fault is not on the command line
        return message
    try:
        config = compose_config(others)
    except UserError:
        return message
    group = key.partition(".")[0]
    if group in optional_groups() and config.get(group) is None:
        return f"{group} is null in this run: choose {group}={' or '.join(groups()[group])} before {key} is set."
    value = next(parse(o)[1] for o in overrides if parse(o)[0] == key)
    while isinstance(value, dict) and OmegaConf.is_dict(
        node := OmegaConf.select(config, key)
    ):  # the fault is inside it
        name = next((name for name in value if name not in node or isinstance(value[name], dict)), None)
        if name is None:
            return message
        key, value = f"{key}.{name}", value[name]
    parent_key, _, leaf = key.rpartition(".")
    parent = OmegaConf.select(config, parent_key) if parent_key else config
    while parent_key and not OmegaConf.is_dict(parent):
        parent_key, _, leaf = parent_key.rpartition(".")
        parent = OmegaConf.select(config, parent_key) if parent_key else config
    keys = [*map(str, parent), *([] if parent_key else ["experiment", "resume"])]
    options = list(dict.fromkeys(key for key in keys if not key.startswith("_")))
    prefix = f"{parent_key}." if parent_key else ""
    hint = near_matches(leaf, options)
    taken_away = any(o.startswith("~") and parse(o)[0] == key for o in overrides)
    adds = f" (+{key}=... adds a new one)" if is_argument(config, key) and not taken_away else ""
    return f"{key} is no key of this config: under '{prefix or 'the top level'}' {hint}{adds}"


def literal(text: str | Path) -> str:
    """Write a text so that a config takes it as it is: ``${`` begins no interpolation in it.

    Returns:
        The value to set.
    """
    return re.sub(r"(\\*)\$\{", lambda found: 2 * found.group(1) + r"\${", str(text))


def quoted(text: str | Path, quote: Quote = Quote.single) -> str:
    """Write a text as the value of an override, whatever signs are in it.

    Args:
        quote: Kind of the quotes.

    Returns:
        The text in quotes, which Hydra reads back as it was.
    """
    return QuotedString(literal(text), quote).with_quotes()


def written_out(argument: str) -> str:
    """Write what is typed for short as Hydra takes it: ``group=null``, ``~``, and ``init=RUN``, also several in a multirun.

    Args:
        argument: What was typed.

    Returns:
        Such as ``discriminator=none`` and ``init.run=RUN``; a run with ``=`` in its name, as the jobs of a sweep have it, is in
        quotes; ``~`` of a folder to write to is the home folder. All else is as it was.
    """
    key, _, value = argument.partition("=")
    if key in WRITTEN_TO and (home := _HOME.match(value)):
        try:
            return f"{key}={home.group(1)}{Path(home.group(2)).expanduser()}{value[home.end() :]}"
        except RuntimeError as error:
            raise UserError(f"{argument}: there is no such home folder.") from error
    if key != "init" or value.startswith("{"):
        return without_null(argument)
    return f"init.run={quoted(value) if '=' in value and value[0] not in QUOTES else value}"


def parse(override: str) -> tuple[str, Any]:
    """Split an override into its key, without ``+`` or ``~``, and its value.

    Returns:
        Key and value; the value of a deletion is None.

    Raises:
        UserError: The override is malformed.
    """
    try:
        parsed = override_parser().parse_override(override)
    except HydraException as error:
        key, equals, value = override.partition("=")
        hint = (
            f"; a value with signs of its own is put in quotes: {shlex.quote(f'{key}={quoted(value)}')}"
            if equals
            else ""
        )
        raise UserError(f"{override} is not of the form key=value ({one_line(error)}){hint}.") from error
    return parsed.key_or_group, parsed.value()


def values_of(argument: str) -> list[str]:
    """Write out the values that an argument of a multirun has.

    Args:
        argument: An override, such as ``seed=1,2`` or ``seed=range(3)``.

    Returns:
        An override for each value; none for a space that only a search draws from, such as ``interval(0,1)``.

    Raises:
        UserError: The override is malformed.
    """
    try:
        override = override_parser().parse_override(argument)
        if not override.is_sweep_override():
            return [argument]
        if not override.is_discrete_sweep():
            return []
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise UserError(f"'{argument}' is not of the form key=value,value: {one_line(error)}") from error


def merged(earlier: list[str], later: list[str]) -> list[str]:
    """Put overrides on top of others.

    Args:
        later: Overrides that replace those of the same key or group.

    Returns:
        One override for each key.
    """
    keys = {parse(override)[0] for override in later}
    return [override for override in earlier if parse(override)[0] not in keys] + later


def apply_overrides(
    saved: DictConfig, saved_overrides: list[str], overrides: list[str], fresh: DictConfig | None = None
) -> DictConfig:
    """Return a run's recorded config with some overrides on top.

    What the overrides name is taken from a fresh composition (so that ``sampler=heun`` or ``degradation=blur`` works),
    everything else from the record, so that a later change of ``conf/`` does not alter an old run.

    Args:
        saved: The recorded config.
        saved_overrides: The overrides it was composed from.
        overrides: The new overrides.
        fresh: What is composed of both; None: it is composed here.

    Raises:
        UserError: An override is unknown, or of a group that only a new run can choose.
    """
    result = saved.copy()
    if not overrides:
        return result
    for key in FOR_NEW_RUNS & {parse(override)[0] for override in overrides}:
        raise UserError(f"{key}= cannot be changed on an existing run: override single groups or keys.")
    if fresh is None:
        fresh = compose_config(merged(saved_overrides, overrides), recorded=saved_overrides)
    OmegaConf.set_struct(result, False)
    chosen = [(parse(override)[0], parse(override)[1]) for override in overrides]
    spread = [keys_set_by(key, str(option)) for key, option in chosen]
    if any(spread):  # whatever the run is to do now, its network is the one that was trained
        result.network = OmegaConf.to_container(saved.network, resolve=True)
    named = [[key.split("@")[-1].replace("/", ".")] for key, _ in chosen]
    for key in itertools.chain.from_iterable(keys or own for keys, own in zip(spread, named, strict=True)):
        parent_key, _, leaf = key.rpartition(".")
        while parent_key and OmegaConf.select(result, parent_key) is None:  # what the record lacks is taken whole
            parent_key, _, leaf = parent_key.rpartition(".")
        parent = OmegaConf.select(fresh, parent_key) if parent_key else fresh
        target = OmegaConf.select(result, parent_key) if parent_key else result
        if leaf in parent:
            node = parent._get_node(leaf)  # the node itself: interpolations stay interpolations
            target[leaf] = node
        else:
            del target[leaf]
    checked_config(OmegaConf.to_container(result, resolve=False), "the config of the run")
    return result


def help_text() -> str:
    """Return what ``--help`` prints: experiments with a line each, groups, and the most useful overrides."""
    width = max(map(len, experiments()))
    lines = ["Usage: python train.py experiment=NAME [group=OPTION ...] [key=VALUE ...]", "", "Experiments:"]
    lines += [f"  {name:<{width}}  {line}" for name, line in experiments().items()]
    lines += ["", "Groups (group=OPTION):"]
    lines += [
        f"  {g:<{width}}  {', '.join(options)}" for g, options in groups().items() if g not in ("experiment", "hydra")
    ]
    useful = yaml.safe_load((CONF_DIR / "help.yml").read_text())
    lines += ["", "Useful overrides:"]
    key_width = max(map(len, useful))
    lines += [f"  {key:<{key_width}}  {line}" for key, line in useful.items()]
    lines += [
        "",
        "Also: -m for sweeps (seed=1,2,3), --cfg job to print the composed config; python evaluate.py, python generate.py, "
        "python compare.py, python report.py, python export.py.",
    ]
    return "\n".join(lines)
