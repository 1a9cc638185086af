"""What a config that comes with a run folder, a checkpoint or an export may say: it is data, whoever wrote it.

A config names the classes that are built and the values that they get, so a config of somebody else could run anything. One
that is read from a file may therefore name only what the project's own ``conf/`` names; what a person types in this call is
the person's own. See ``docs/received.md``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from datamodules.shards.files import is_url
from launch.errors import UserError, one_line
from launch.former import FORMER, renewed, renewed_override

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
TYPED_VARIABLE = "TRIPTYCH_TYPED"  # what was typed in this call; inherited by the processes of its ranks
TARGET, PARTIAL = "_target_", "_partial_"
STUDIES = ("study", "budget")  # groups of conf/study.yaml, and none of a training
SHARDS = {"train", "val", "test"}  # keys of data=webdataset, whose addresses can be commands
LOGGER_FOLDERS, RUN_FOLDER = {"folder", "save_dir"}, "${paths.run}"
MAX_DEPTH, MAX_NODES = 50, 50_000  # a file can hold itself, and a few lines can stand for billions of values

_REFERENCE = re.compile(r"\$\{\.*\w[\w.]*\}")
_CALL = re.compile(  # once references and the calls within it are left out
    r"\$\{(sum|equal|when|nearest_levels|run_id|oc\.select|trained_\w+|space_\w+|folded_channels):[^\"'\\${}]*\}"
)
_PAIR = re.compile(r"\$\{oc\.create:[^\"'\\$]*\}")
_OUTSIDE = re.compile(r"(^|/)\.\.(/|$)|^[/~]")


@dataclass(frozen=True)
class Own:
    """What the project's ``conf/`` names.

    Attributes:
        arguments: By class or function, the arguments that it is given.
        expressions: Values that are computed, as they are written.
        keys: Dotted keys of a training's config, whichever options have them.
        logger_expressions: What is computed for a logger, with the name of its argument.
    """

    arguments: Mapping[str, frozenset[str]]
    expressions: frozenset[str]
    keys: frozenset[str]
    logger_expressions: frozenset[tuple[str, str]]


@cache
def override_parser() -> OverridesParser:
    """Return Hydra's parser of overrides: to make one takes longer than all that it then reads."""
    return OverridesParser.create()


@cache
def own() -> Own:
    """Read what ``conf/`` names.

    Returns:
        The classes, functions and expressions that a config from elsewhere may name too.
    """
    arguments: dict[str, set[str]] = {}
    expressions: set[tuple[tuple[str, ...], str]] = set()
    keys: set[str] = set()
    for path in sorted(CONF_DIR.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        place = path.relative_to(CONF_DIR).with_suffix("").parts
        package = () if text.startswith("# @package _global_") else place[:-1]
        for key, node in nodes(content):
            names = (*package, *(name for name in key if isinstance(name, str)))
            if place[0] not in STUDIES:
                keys.add(".".join(names))
            if isinstance(node, dict) and isinstance(target := node.get(TARGET), str):
                arguments.setdefault(target, set()).update(map(str, node))
            elif isinstance(node, str) and "${" in node:
                expressions.add((names, node))
    return Own(
        {target: frozenset(names) for target, names in arguments.items()},
        frozenset(node for _, node in expressions) - FORMER.keys(),
        frozenset(keys),
        frozenset((names[-1], node) for names, node in expressions if names[0] == "logger"),
    )


def note_typed(overrides: Iterable[str]) -> None:
    """Keep what a person typed in this call, for this process and those that it starts.

    Args:
        overrides: The overrides of the command line.
    """
    os.environ[TYPED_VARIABLE] = json.dumps(list(overrides))


def typed() -> list[str]:
    """Return the overrides that a person typed in this call."""
    return json.loads(os.environ.get(TYPED_VARIABLE, "[]"))


def checked_config(content: Any, where: str | Path) -> dict[str, Any]:
    """Check a config that was read from a file, before anything in it is resolved or built.

    Args:
        content: Plain containers, interpolations as they are written.
        where: The file, for messages.

    Raises:
        UserError: It is none, or says what only the project or a person at the command line may say.
    """
    if not isinstance(content, dict) or not content or not all(isinstance(key, str) for key in content):
        raise UserError(f"{where} is refused: it holds no config.")
    if "hydra" in content:
        raise UserError(f"{where} is refused: a run's config has no hydra, which says how this process runs.")
    allowed = _Typed.now()
    _check(content, (), str(where), allowed, FORMER.keys())
    content = renewed(content)
    if isinstance(logger := content.get("logger"), dict):  # writes to this run, wherever it was when it was recorded
        folders = {key for key in LOGGER_FOLDERS & logger.keys() if not allowed.holds(("logger", key))}
        logger |= dict.fromkeys(folders, RUN_FOLDER)
    return content


def checked_export(content: Any, where: str | Path) -> dict[str, Any]:
    """Check the config of an export, which holds none but values, before anything in it is built.

    Args:
        content: Plain containers.
        where: The file, for messages.

    Raises:
        UserError: It is none, or names what is no part of Triptych.
    """
    if not isinstance(content, dict) or not isinstance(content.get("module"), dict):
        raise UserError(f"{where} is damaged: it has no module; export the run again.")
    for key, node in nodes(content):
        if isinstance(node, str) and "${" in node:
            name = ".".join(map(str, key))
            raise UserError(f"{where} is refused: {name}={node} is no value; an export holds none but values.")
    _check(content, (), str(where), _Typed((), (), frozenset()))
    return renewed(content)


def checked_overrides(content: Any, where: str | Path) -> list[str]:
    """Check overrides that were read from a file, before anything is composed of them.

    Args:
        content: What should be a list of overrides.
        where: The file, for messages.

    Raises:
        UserError: They are none, or say what only the project or a person at the command line may say.
    """
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(line, str) for line in content):
        raise UserError(f"{where} is refused: it holds no list of overrides.")
    allowed = _Typed.now()
    for line in content:
        if line not in allowed.overrides:
            _check_override(line, str(where), allowed)
    return [*map(renewed_override, content)]


@dataclass(frozen=True)
class _Typed:
    """What a person typed: values that are not checked where they stand, and further targets."""

    overrides: Sequence[str]
    keys: tuple[tuple[str, ...], ...]
    targets: frozenset[str]

    @classmethod
    def now(cls) -> _Typed:
        overrides = typed()
        keys, targets = [], set()
        for line in overrides:
            try:
                override = override_parser().parse_override(line)
            except HydraException:  # said in one sentence where the command line is read
                continue
            key = _key(override)
            if len(key) == 1 and _is_group(override):  # an option of conf/, into which recorded overrides go too
                continue
            value = plain_value(override.value())
            keys.append(key)
            targets |= {node[TARGET] for _, node in nodes(value) if isinstance(node, dict) and TARGET in node}
            targets |= {value} if key[-1] == TARGET else set()
        return cls(overrides, tuple(keys), frozenset(target for target in targets if isinstance(target, str)))

    def holds(self, key: tuple[str, ...]) -> bool:
        return any(key[: len(own_key)] == own_key for own_key in self.keys)


def _check_override(line: str, where: str, allowed: _Typed) -> None:
    try:
        override = override_parser().parse_override(line)
        if override.is_sweep_override():
            raise UserError(f"{where} is refused: {line} has several values.")
        value = plain_value(override.value())
    except HydraException as error:
        raise UserError(f"{where} is refused: '{line}' is no override: {one_line(error)}") from error
    parts = [override.key_or_group, override.package or ""]
    if any(part.lstrip("/").split(".")[0].split("/")[0] == "hydra" for part in parts):
        raise UserError(f"{where} is refused: {line} says how this process runs; only a command line may.")
    if _is_group(override):
        options = value if isinstance(value, list) else [value]
        if not all(
            option is None or (isinstance(option, str) and re.fullmatch(r"\w[\w-]*", option)) for option in options
        ):
            raise UserError(f"{where} is refused: {line} names no option of conf/{override.key_or_group}.")
        return
    node: Any = value
    for part in reversed(_key(override)):
        node = {part: node}
    _check(node, (), where, allowed)


def _is_group(override: Override) -> bool:
    return "/" in override.key_or_group or (CONF_DIR / override.key_or_group).is_dir()


def _key(override: Override) -> tuple[str, ...]:
    return tuple(override.key_or_group.split("."))


def plain_value(value: Any) -> Any:
    """Return a parsed value without Hydra's own classes; what is none of a single override is itself."""
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, dict):
        return {plain_value(key): plain_value(each) for key, each in value.items()}
    return [plain_value(each) for each in value] if isinstance(value, list) else value


def nodes(content: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Walk over everything in nested containers, with its key; not by recursion, which a deep file would exhaust."""
    waiting: list[tuple[tuple[Any, ...], Any]] = [((), content)]
    while waiting:
        key, node = waiting.pop()
        yield key, node
        if isinstance(node, Mapping):
            waiting += [((*key, name), value) for name, value in node.items()]
        elif isinstance(node, list | tuple):
            waiting += [((*key, number), value) for number, value in enumerate(node)]


def _check(
    content: Any, at: tuple[str, ...], where: str, allowed: _Typed, former: Collection[str] = frozenset()
) -> None:
    for number, (below, node) in enumerate(nodes(content)):
        if number > MAX_NODES:
            raise UserError(f"{where} is refused: it has more than {MAX_NODES:,} values.")
        key = (*at, *below)
        if len(key) > MAX_DEPTH:
            raise UserError(f"{where} is refused: it is nested more than {MAX_DEPTH} deep.")
        if isinstance(node, Mapping):
            if fault := _fault_of_node(node, key, allowed):
                raise UserError(f"{where} is refused: {fault}.")
        elif (
            isinstance(node, str)
            and node not in former
            and not allowed.holds(key)
            and (fault := _fault_of_text(node, key))
        ):
            name = ".".join(map(str, key))
            raise UserError(
                f"{where} is refused: {name}={node!r} {fault}; type it on the command line if you trust it."
            )


def _fault_of_node(node: Mapping[Any, Any], key: tuple[Any, ...], allowed: _Typed) -> str | None:
    name = ".".join(map(str, key)) or "its top level"
    for entry, value in node.items():
        if isinstance(entry, str) and entry.startswith("_") and entry.endswith("_") and entry not in (TARGET, PARTIAL):
            return f"{name} has {entry}, which no config of Triptych has"
        if entry == PARTIAL and not isinstance(value, bool):
            return f"{name}.{PARTIAL} is neither true nor false"
    if TARGET not in node:
        return f"{name} has {PARTIAL} without {TARGET}" if PARTIAL in node else None
    target = node[TARGET]
    if not isinstance(target, str) or target not in own().arguments.keys() | allowed.targets | FORMER.keys():
        return (
            f"{name}.{TARGET}={target} is none of the classes that Triptych's conf/ names, and to call it could run any "
            f"code; if you trust it, type {name}.{TARGET}={target} on the command line"
        )
    if key[:1] == ("logger",):  # more arguments would go to the server's own client, with the login of whoever resumes
        more = node.keys() - own().arguments.get(target, node.keys()) - {"id"}
        more = {entry for entry in more if not allowed.holds((*key, entry))}
        return f"{name}.{min(more)} is no argument that Triptych's conf/ gives to a logger" if more else None
    return None


def _fault_of_text(text: str, key: tuple[Any, ...]) -> str | None:
    if SHARDS & set(key[1:]):
        return _fault_of_shards(text)
    if text.startswith("pipe:"):
        return "is a command"
    if key[:1] == ("logger",) and key[-1] not in LOGGER_FOLDERS:
        if _OUTSIDE.search(text):
            return "leaves the run folder"
        names = [name for name in key if isinstance(name, str)]
        if "${" in text and (names[-1], text) not in own().logger_expressions:  # it could stand for anything
            return "is computed by what no logger of Triptych is given"
    if "${" not in text or text in own().expressions or _REFERENCE.fullmatch(text):
        return None
    rest, calls = _REFERENCE.sub("", text), 1
    while calls and not _CALL.fullmatch(rest):
        rest, calls = _CALL.subn("", rest)
    if _CALL.fullmatch(rest) or _is_pair(text):
        return None
    return "is computed by what no config of Triptych computes with"


def _is_pair(text: str) -> bool:
    """Say whether a text is one of plain values for training and evaluation, as the degradations have."""
    if not _PAIR.fullmatch(text):
        return False
    try:
        value = OmegaConf.to_container(OmegaConf.create({"value": text}), resolve=True)
    except OmegaConfBaseException:
        return False
    names = [part for key, _ in nodes(value) for part in key]
    return not any(isinstance(name, str) and name.startswith("_") for name in names)


def _fault_of_shards(text: str) -> str | None:
    """Find what opening a shard's address could run: all but a file's path and http is fetched by a command."""
    if "${" in text or "::" in text:
        return "is no plain path or address"
    if ":" not in text or text.startswith(("http://", "https://", "file://")):
        return None
    return "is fetched by a command" if is_url(text) or "{" in text else None
