"""Keys that a command line adds to a config, as ``+mine.lr=0.1``: one that nothing reads is a slip of the keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from launch.errors import UserError, near_matches
from launch.received import TARGET, nodes, override_parser, own, plain_value

_NAME = re.compile(r"[A-Za-z_][\w.]*")


def check_new_keys(config: DictConfig, overrides: Iterable[str]) -> None:
    """Check that the keys that were added are read: by an object, as its arguments, or by what refers to them.

    Args:
        config: What was composed, interpolations not resolved.
        overrides: What was typed.

    Raises:
        UserError: One is neither a key of ``conf/`` nor below an object, and nothing refers to it.
    """
    overrides = list(overrides)
    for line in overrides:
        override = override_parser().parse_override(line)
        if not (override.is_add() or override.is_force_add()) or override.key_or_group.startswith("hydra"):
            continue
        for key in _leaves(override):
            if key not in own().keys and not is_argument(config, key) and not _is_named(config, key, overrides):
                raise UserError(f"{line}: nothing reads {key}: {_nearest(key)}")


def is_argument(config: DictConfig, key: str) -> bool:
    """Say whether a key lies below an object of the config, whose class takes it or says that it does not."""
    parts = key.split(".")
    return any(_is_object(config, ".".join(parts[:end])) for end in range(1, len(parts)))


def _is_object(config: DictConfig, key: str) -> bool:
    try:
        node = OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return False
    return OmegaConf.is_dict(node) and TARGET in node


def _leaves(override: Override) -> Iterator[str]:
    """Return the keys that an override sets, in a config without packages."""
    for at, node in nodes(plain_value(override.value())):
        if not isinstance(node, dict) and not any(isinstance(part, int) for part in at):
            yield ".".join([override.key_or_group.replace("/", "."), *map(str, at)])


def _is_named(config: DictConfig, key: str, overrides: Iterable[str]) -> bool:
    """Say whether an interpolation of the config, or of what was typed, names a key, what it is in or what is in it."""
    values = (node for _, node in nodes(OmegaConf.to_container(config, resolve=False)) if isinstance(node, str))
    names = {name for text in (*values, *overrides) for name in _NAME.findall(text.partition("${")[2])}
    return any(f"{key}.".startswith(f"{name}.") or name.startswith(f"{key}.") for name in names)


def _nearest(key: str) -> str:
    """Name keys like the first part of one that ``conf/`` does not have."""
    parts = key.split(".")
    end = next(end for end in range(1, len(parts) + 1) if ".".join(parts[:end]) not in own().keys)
    above = ".".join(parts[: end - 1])
    known = {name.rpartition(".")[2] for name in own().keys if name.rpartition(".")[0] == above}
    return near_matches(parts[end - 1], {name for name in known if not name.startswith("_")})
