"""Reads the records of run folders and exports, which may be damaged, or written by somebody who means harm."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.errors import UserError, one_line

MAX_JSON_BYTES = 50_000_000
MAX_YAML_BYTES = 500_000
MAX_NODES = 50_000  # of a YAML file with its aliases written out: a few lines can stand for billions of values
MAX_DEPTH = 50
NUMBER = (int, float)
# What is used of a record, by its key; "*" stands for all keys. What is missing is not known.
EVALUATION_SHAPE: dict[str, type | tuple[type, ...]] = {
    "weights": str, "time": str, "step": int, "seed": int, "evaluation_seed": int, "overrides": list, "degradation": dict,
    "degradation.steps": dict, "hardware": dict, "hardware.threads": int, "data": dict, "data.name": str,
    "data.image_size": int, "data.fingerprints": dict, "data.evaluation_seed": int, "data.fingerprint": str,
    "data.images": dict, "data.images.*": int, "sampling": dict, "sampling.num_network_calls": dict,
    "sampling.num_network_calls.*": NUMBER, "sampling.seconds_per_image": dict, "sampling.seconds_per_image.*": NUMBER,
}  # fmt: skip
RUN_SHAPE: dict[str, type | tuple[type, ...]] = {
    "name": str, "overrides": list, "seed": int, "started": str, "ended": str, "step": int, "parameters": int,
    "early_stop": str, "git_revision": str, "resumed_at_steps": list, "versions": dict, "hardware": dict, "hardware.ranks": int,
    "hardware.threads": int, "data": dict, "data.name": str, "data.image_size": int, "data.label_names": list,
    "data.images": dict, "data.images.*": int, "data.fingerprints": dict, "data.fingerprints.*": str,
    "data.earlier": list, "parts": dict, "parts.*": dict, "parts.*.path": str, "parts.*.hash": str,
    "judge": dict, "judge.path": str, "judge.hash": str,
    "init": dict, "init.run": str, "init.name": str, "init.weights": str, "init.step": NUMBER, "init.hash": str,
}  # fmt: skip
MAX_SHOWN = 40  # characters of a wrong value
REMEDIES = {
    "run.json": "put back a copy of it, or remove it to continue without what it says",
    "job.json": "put back a copy of it, or remove it: the job is then counted from its next start",
    "metrics.json": "evaluate the run again",
    "metrics.csv": "put back a copy of it, or remove it to continue without its rows",
    "by_image.csv": "evaluate the run again",
    "mlflow.json": "remove it: what follows is then another run of MLflow",
    "wandb.json": "remove it, and name the run to continue by +logger.id=ID, the end of the names in wandb/",
}
_CLOSES = (yaml.MappingEndEvent, yaml.SequenceEndEvent)


class DamagedRecordError(UserError, ValueError):
    """A record cannot be read, or is not what Triptych writes; the message names the file and the remedy.

    Args:
        reason: What is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path} is damaged ({reason}): {REMEDIES.get(path.name, 'put back a copy of it')}.")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a record in JSON.

    Args:
        path: The file, UTF-8 with or without a byte order mark.
        *keys: What it must have, each an object itself.

    Raises:
        DamagedRecordError: It cannot be read, or is something else.
    """
    try:
        content = json.loads(_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        raise DamagedRecordError(path, one_line(error)) from error
    if not isinstance(content, dict):
        raise DamagedRecordError(path, "it holds no JSON object")
    for key in keys:
        if not isinstance(content.get(key), dict):
            raise DamagedRecordError(path, f"{key} is missing or no JSON object")
    return content


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a ``metrics.json``.

    Returns:
        ``{"metrics": {name: value}, "record": {...}}``.

    Raises:
        DamagedRecordError: It cannot be read, or is something else.
    """
    content = read_json(path, "metrics", "record")
    check_shape(path, content["record"], EVALUATION_SHAPE)
    for name, value in content["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DamagedRecordError(path, f"{name} is {_shown(value)}, which is no number")
        if not all(name.split("/", 1)):  # a user's metric may have no output, and then no slash
            raise DamagedRecordError(path, f"{name!r} names no metric and output")
    content["metrics"] = {name: float(value) for name, value in content["metrics"].items()}
    return content


def read_run_record(path: Path) -> dict[str, Any]:
    """Read a ``run.json``, checked as all records are."""
    return checked_run_record(path, read_json(path))


def checked_run_record(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Check what ``run.json`` says, or what a checkpoint has kept of it.

    Args:
        path: The file, for messages.
    """
    check_shape(path, content, RUN_SHAPE)
    return content


def check_shape(path: Path, content: dict[str, Any], shape: Mapping[str, type | tuple[type, ...]]) -> None:
    """Check that what is used of a record is of the kind that it was written as.

    Args:
        path: The file, for messages.
        shape: Kinds of values by dotted key.

    Raises:
        DamagedRecordError: A value is of another kind.
    """
    for key, kind in shape.items():
        for name, value in _values(content, key.split(".")):
            is_kind = isinstance(value, kind) and not isinstance(value, bool)
            is_unknown = value is None and (kind in (str, list, NUMBER) or name == "degradation")
            if not is_kind and not is_unknown:
                raise DamagedRecordError(path, f"{name} is {_shown(value)}, which is of another kind")


def _values(node: Any, parts: Sequence[str], name: str = "") -> Iterator[tuple[str, Any]]:
    if not parts:
        yield name, node
    elif isinstance(node, dict):
        for key in node if parts[0] == "*" else [parts[0]] if parts[0] in node else []:
            yield from _values(node[key], parts[1:], f"{name}.{key}".lstrip("."))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def read_yaml(path: Path) -> Any:
    """Read a record in YAML; what its aliases stand for is bounded.

    Args:
        path: The file, UTF-8 with or without a byte order mark.

    Returns:
        Plain containers, interpolations as they are written.

    Raises:
        DamagedRecordError: It cannot be read.
    """
    text = _text(path, MAX_YAML_BYTES)
    try:
        if fault := _fault(text):
            raise DamagedRecordError(path, fault)
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, OSError, RecursionError) as error:
        raise DamagedRecordError(path, one_line(error)) from error


def passed_over(what: str, error: UserError) -> None:
    """Say that a record of one run is damaged, where a search continues without it.

    Args:
        error: What is wrong with it.
    """
    rank_zero_warn(f"{what} is passed over: {error}")


def _text(path: Path, limit: int) -> str:
    try:
        if not path.is_file():  # a pipe or device would never end
            raise DamagedRecordError(path, "it is no regular file" if path.exists() else "it is missing")
        if path.stat().st_size > limit:
            raise DamagedRecordError(path, f"it has more than {limit:,} bytes")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedRecordError(path, one_line(error)) from error


def _fault(text: str) -> str | None:
    """Measure a YAML file by its events, before anything is built of it."""
    sizes: dict[str, int] = {}  # of the nodes with an anchor, written out
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and number of nodes before it
    total = 0
    for event in _events(text):
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                return f"its alias *{event.anchor} stands for nothing, or for what it is a part of"
            total += sizes[event.anchor]
        elif isinstance(event, yaml.NodeEvent):
            total += 1
            if isinstance(event, yaml.ScalarEvent) and event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, _CLOSES):
            anchor, before = open_nodes.pop()
            if anchor:
                sizes[anchor] = total - before
        if total > MAX_NODES:
            return f"it stands for more than {MAX_NODES:,} values"
        if len(open_nodes) > MAX_DEPTH:
            return f"it is nested more than {MAX_DEPTH} deep"
    return None


def _events(text: str) -> Iterator[yaml.Event]:
    return yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
