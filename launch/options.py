"""The groups of ``conf/``, their options, and what a run is without where a group is null."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf, open_dict

from generative.checks import hints_of
from launch.errors import UserError
from launch.named import check_named, named
from launch.received import CONF_DIR, PARTIAL, STUDIES, TARGET, own
from launch.trained_parts import TRAINED

NONE = "none"  # the option that leaves a group out: Hydra takes null for no option, and refuses it
_NULL = re.compile(r"""(?<![\w'"])null(?![\w'"])""", re.IGNORECASE)
# Groups whose options are parts that a module is built from, or the data for it.
PARTS = frozenset(
    {"degradation", "bottleneck", "discriminator", "perceptual", "objective", "schedule", "guidance", "sampler"}
)
FOR_NEW_RUNS = frozenset({"experiment", "search", "debug"})  # groups that set keys all over the config


def groups() -> dict[str, list[str]]:
    """Return the config groups of a training and their options.

    Returns:
        Option names by group; files that begin with ``_`` are parts of others.
    """
    folders = [folder.name for folder in sorted(CONF_DIR.iterdir()) if folder.is_dir()]
    return {name: options_of(name) for name in folders if not name.startswith("_") and name not in STUDIES}


def options_of(group: str) -> list[str]:
    """Return the options of a config group."""
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml") if not path.stem.startswith("_"))


def experiments() -> dict[str, str]:
    """Return the experiments with the line that describes each.

    Returns:
        Description by name: the comment that follows ``# @package`` in the file.
    """
    return {name: described("experiment", name) for name in groups()["experiment"]}


def described(group: str, option: str) -> str:
    """Return the line that describes an option: the first comment in its file but ``# @package``."""
    lines = (CONF_DIR / group / f"{option}.yaml").read_text().splitlines()
    comments = [line[1:].strip() for line in lines if line.startswith("#")]
    return next((line for line in comments if not line.startswith("@package")), "")


@cache
def optional_groups() -> frozenset[str]:
    """Return the groups that some run is without: those that ``conf/train.yaml`` has as null."""
    defaults = yaml.safe_load((CONF_DIR / "train.yaml").read_text())["defaults"]
    choices = [item for entry in defaults if isinstance(entry, dict) for item in entry.items()]
    return frozenset(group for group, option in choices if option is None) - {"experiment"}


def targets(group: str) -> dict[str, tuple[str, bool]]:
    """Return the class behind each option of a group, for options that have one.

    Returns:
        ``_target_`` and ``_partial_`` by option.
    """
    found = {option: _content(group, option) for option in groups()[group]}
    return {option: (node[TARGET], node.get(PARTIAL, False)) for option, node in found.items() if TARGET in node}


def preferred(module: str, group: str) -> str | None:
    """Return the option of a group that a module's own file chooses, or None.

    Args:
        module: The module's ``_target_``.
    """
    for node in (_read("module", name) for name in groups()["module"]):
        if node.get("module", {}).get(TARGET) == module:
            choices = [entry.get(f"override /{group}") for entry in node.get("defaults", []) if isinstance(entry, dict)]
            return next((option for option in choices if option), None)
    return None


def _read(group: str, option: str) -> dict[str, Any]:
    return yaml.safe_load((CONF_DIR / group / f"{option}.yaml").read_text()) or {}


def _content(group: str, option: str) -> Mapping[str, Any]:
    """Read a file of a group on top of those of the group that it is based on."""
    own = _read(group, option)
    base: dict[str, Any] = {}
    for entry in own.get("defaults", []):
        if isinstance(entry, str) and re.fullmatch(r"(?!_self_)\w+", entry):
            base |= _content(group, entry)
    return base | own


def keys_set_by(group: str, option: str) -> list[str]:
    """Return the keys and groups that an option sets which stands for settings all over the config, as ``task=restore`` does.

    Returns:
        Dotted keys; none for an option that is what the group's key holds.
    """
    path = CONF_DIR / group / f"{option}.yaml"
    if not path.exists() or not path.read_text().startswith("# @package _global_"):
        return []
    content = _read(group, option)
    bases = [entry for entry in content.pop("defaults", []) if isinstance(entry, dict)]
    overridden = [str(key).removeprefix("override /") for entry in bases for key in entry]

    def leaves(node: Mapping[str, Any], start: str) -> Iterable[str]:
        for name, value in node.items():
            yield from leaves(value, f"{start}{name}.") if isinstance(value, dict) else [f"{start}{name}"]

    return [*overridden, *leaves(content, "")]


def register_none() -> None:
    """Give Hydra the option that leaves a group out, for each group that a run can be without."""
    for group in optional_groups():
        ConfigStore.instance().store(group=group, name=NONE, node={}, package="_global_")


def without_null(argument: str) -> str:
    """Write ``group=null`` as Hydra takes it, also among the values of a multirun.

    Args:
        argument: What was typed.

    Returns:
        Such as ``discriminator=none,patch``; all that sets no such group is as it was.
    """
    key, equals, value = argument.partition("=")
    if key.lstrip("+") not in optional_groups():
        return argument
    return key + equals + _NULL.sub(NONE, value)


def leave_out(config: DictConfig, overrides: Iterable[str]) -> list[str]:
    """Take out of a config what has no effect on the run, so that no record tells of it.

    That is what a module, an experiment or ``debug=`` sets in a part that the run is without, or for another option of a group,
    as where ``task=``, ``module=``, ``callbacks=`` or the group itself was chosen otherwise; and the groups that the module has
    no use for.

    Args:
        config: A composed config, changed in place.
        overrides: What it was composed from.

    Returns:
        The keys that were taken out; of a part that the run is without, the part's.

    Raises:
        UserError: The command line chooses such a group, sets such a key, or a task that the module cannot do; a file sets
            a key of a part that no run has; or what is named cannot be imported.
    """
    overrides = list(overrides)
    check_named(config)
    left_out = [*_leave_out_missing(config, overrides), *_leave_out_of_others(config, overrides)]
    _check_task(config)
    return [*left_out, *_leave_out_unread(config, overrides)]


def tell_set_in_vain(left_out: list[str], overrides: Iterable[str]) -> None:
    """Print what the experiment's own file sets although the run does not read it, as where ``task=`` makes another run of it.

    Args:
        left_out: The keys that ``leave_out`` took out.
        overrides: What the config was composed from.
    """
    overrides = list(overrides)
    chosen = next((o.partition("=")[2] for o in reversed(overrides) if o.startswith("experiment=")), None)
    wanted = {} if chosen is None else dict.fromkeys(_keys_set_by_experiment(chosen))
    unused = [key for key in wanted if any(key == gone or key.startswith(f"{gone}.") for gone in left_out)]
    if unused:
        print(f"not used, as this run has no such part: {', '.join(unused)} of the experiment", flush=True)  # noqa: T201


def _keys_set_by_experiment(name: str) -> list[str]:
    """Return the keys that an experiment sets, with those of the experiments that it is based on."""
    bases = [entry for entry in _read("experiment", name).get("defaults", []) if isinstance(entry, str)]
    inherited = [key for base in bases if base != "_self_" for key in _keys_set_by_experiment(base)]
    return [*inherited, *keys_set_by("experiment", name)]


def _leave_out_missing(config: DictConfig, overrides: Iterable[str]) -> Iterator[str]:
    """Take out the settings of what the run is without, and name it."""
    for key in [*sorted(optional_groups() & config.keys()), *(f"callbacks.{name}" for name in config.callbacks)]:
        node = OmegaConf.select(config, key)
        if not OmegaConf.is_dict(node) or TARGET in node:
            continue
        for override in overrides:
            if override.lstrip("+").startswith(f"{key}."):
                raise UserError(f"{override} has nothing to set: the run has no {key}; leave it out, or choose one.")
        if not (CONF_DIR / key.replace(".", "/")).is_dir() and key.partition(".")[2] not in _callbacks():
            raise UserError(f"{key} has settings and no {TARGET}: there is none of this name.")
        OmegaConf.update(config, key, None)
        yield key


def _leave_out_of_others(config: DictConfig, overrides: Iterable[str]) -> Iterator[str]:
    """Take out the keys that a part's class does not take, and name them: they were set for another option of the group."""
    typed = {override.lstrip("+").partition("=")[0] for override in overrides}
    for group in sorted(PARTS & set(map(str, config))):
        part = config[group]
        if not OmegaConf.is_dict(part) or part.get(TARGET) not in own().arguments:
            continue
        made = named(part[TARGET])
        if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(made).parameters.values()):
            continue
        takes = hints_of(made)
        for key in [str(key) for key in part if not str(key).startswith("_") and key not in takes]:
            if any(f"{name}.".startswith(f"{group}.{key}.") for name in typed):
                raise UserError(
                    f"{group}.{key} has no effect on {group}={part[TARGET].rpartition('.')[2]}: leave it out."
                )
            with open_dict(part):
                del part[key]
            yield f"{group}.{key}"


@cache
def _callbacks() -> frozenset[str]:
    """Return the names of the callbacks that there are."""
    return frozenset(
        name for option in groups()["callbacks"] for name in _read("callbacks", option) if name != "defaults"
    )


def _check_task(config: DictConfig) -> None:
    """Check that the module has tasks to choose from where one is chosen, and that this is among them."""
    task, kind = config.module.get("task"), _module_class(config)
    if task is None or kind is None:
        return
    choices = kind.choices_of_task()
    if task not in choices:
        name, able = config.module[TARGET].rpartition(".")[2], " or ".join(f"task={choice}" for choice in choices)
        raise UserError(f"task={task} is nothing that {name} does: {f'choose {able}' if able else 'leave it out'}.")


def _leave_out_unread(config: DictConfig, overrides: Iterable[str]) -> Iterator[str]:
    """Take out the groups that the module has no use for, and name them."""
    kind = _module_class(config)
    if kind is None:
        return
    reasons = dict(kind.unread(config.module))
    plain: Any = OmegaConf.to_container(config, resolve=False)
    text = repr([plain[key] for key in ("module", "network", "callbacks")])
    module = f"module={config.module[TARGET].rpartition('.')[2]}"
    for group in PARTS & set(map(str, config)):
        if group != "degradation" and not re.search(rf"\$\{{{group}[.}}]", text):
            reasons[group] = "no part of it is built from it"
    reasons |= {key: "it is built without one" for key in TRAINED if f"${{{key}}}" not in text}
    for key, reason in reasons.items():
        for override in overrides:
            name, _, value = override.lstrip("+").partition("=")
            if (name == key and value not in ("null", NONE)) or name.startswith(f"{key}."):
                raise UserError(f"{override} has no effect on {module}: {reason}; leave it out.")
        if key in PARTS:
            config[key] = None
            yield key


def _module_class(config: DictConfig) -> Any:
    """Return the module's class where it is one of ours; of others we know nothing, and what is none is told later."""
    target = config.module.get(TARGET)
    kind = named(target, f"module.{TARGET}") if target else None
    return kind if hasattr(kind, "unread") else None
