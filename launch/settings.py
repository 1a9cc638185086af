"""What runs were set to, key by key, and in which keys they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from launch.build import plain_config
from launch.record import history_of

Settings = dict[str, str]

TARGET = "_target_"
ABSENT = "—"
BEFORE = "settings before"  # of a run whose settings were changed when it was resumed
_REFERENCE = re.compile(r"\$\{[\w.]+\}")  # of another node, where its value is listed already
# Where a run lies, what it reports to, and its draws: rows are means over the seeds.
_LEFT_OUT = re.compile(
    r"(paths|logger|hydra|resume|sweep|name|classifier|debug|data_changed)(\.|$)|(.*\.)?(seed|evaluation_seed|cache_dir|resident|_partial_)$"
    r"|callbacks\.(?!ema)"
)
# What changes how a run proceeds, but not what it arrives at.
_INCIDENTAL = re.compile(
    r"trainer\.(?!max_steps|precision|gradient_clip_val|accumulate_grad_batches)|data\.(eval_batch_size|root|.*_json)$|(module\.)?compile$"
)


def settings_of(config: DictConfig, parts: Mapping[str, Any]) -> Settings:
    """Write a config out as one value for each key.

    Args:
        config: The composed config of a run.
        parts: Trained parts that the run was built from, as ``run.json`` records them.

    Returns:
        Values by dotted key, without paths, loggers and seeds; a trained part is known by its hash.
    """
    config = config.copy()
    for key in ("classifier", *parts):  # found by their place, but known by their content
        config[key] = None
    found: Settings = {}
    raw = OmegaConf.to_container(config, resolve=False)
    _flatten(plain_config(config), raw, "", found)
    found |= {f"{name} (hash)": str(part.get("hash")) for name, part in parts.items()}
    return {key: value for key, value in found.items() if not _LEFT_OUT.match(key) and key not in parts}


def earlier_settings(record: dict[str, Any]) -> str:
    """Say what of a run's settings was another value before it was resumed with the present one.

    Returns:
        Such as ``optimizer.lr=0.001 until step 6``; empty for a run of one kind.
    """
    told = []
    for entry in history_of(record):
        values = [
            f"{key}={short_value(change.get('from'))}"
            for key, change in entry.get("changes", {}).items()
            if isinstance(change, dict) and not _LEFT_OUT.match(key) and not _INCIDENTAL.match(key)
        ]
        told += [f"{', '.join(values)} until step {entry['step']}"] if values else []
    return "; ".join(told)


def _flatten(value: Any, raw: Any, key: str, found: Settings) -> None:
    if isinstance(raw, str) and _REFERENCE.fullmatch(raw):
        return
    if isinstance(value, dict) and value:
        for name, child in value.items():
            below = raw.get(name) if isinstance(raw, dict) else None
            _flatten(child, below, f"{key}.{name}" if key else str(name), found)
    else:
        found[key] = short_value(value)


def short_value(value: Any) -> str:
    """Write a value as on a command line.

    Args:
        value: A plain value.

    Returns:
        Text.
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(short_value, value)) + "]"
    return str(value)


def differing(several: Iterable[Settings]) -> list[str]:
    """Find the keys in which settings differ.

    Returns:
        Keys in the order of the settings, the incidental ones left out; without a key is as with null.
    """
    several = list(several)
    keys = dict.fromkeys(key for settings in several for key in settings)
    return [
        key for key in keys if len({s.get(key, short_value(None)) for s in several}) > 1 and not _INCIDENTAL.match(key)
    ]


def distinguishing(several: Sequence[Settings]) -> list[str]:
    """Find the fewest keys that tell settings apart: an exchanged object is one key, not all that are below it."""
    found: dict[str, None] = {}
    different = differing(several)
    for key in different:
        parts = key.split(".")
        objects = (".".join(parts[:n]) for n in range(1, len(parts)))
        found[next((o for o in objects if f"{o}.{TARGET}" in different), key)] = None
    return list(found)


def value_at(settings: Settings, key: str, several: Sequence[Settings]) -> str:
    """Name the value or the object at a key.

    Args:
        several: All settings that are told apart.

    Returns:
        The value; of an object its class, with what differs among objects of this class: an object below it that only others
        have is not told.
    """
    target = settings.get(f"{key}.{TARGET}")
    if target is None:
        below = {k: v for k, v in settings.items() if k.startswith(f"{key}.")}
        return settings.get(key, " ".join(f"{k[len(key) + 1 :]}={v}" for k, v in below.items()) or ABSENT)
    same = [s for s in several if s.get(f"{key}.{TARGET}") == target]
    inside = [k for k in distinguishing(same) if k.startswith(f"{key}.")]
    objects = {k for k in inside if any(f"{k}.{TARGET}" in s for s in same)}
    told = [k for k in inside if k not in objects or k in settings or f"{k}.{TARGET}" in settings]
    arguments = ", ".join(f"{k[len(key) + 1 :]}={value_at(settings, k, same)}" for k in told)
    return target.rpartition(".")[2] + (f"({arguments})" if arguments else "")
