"""Finds the classes and functions that a config names, and says why where that fails."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

from omegaconf import DictConfig, OmegaConf

from launch.errors import UserError, near_matches, one_line
from launch.received import TARGET, nodes


def named(target: str, key: str = TARGET) -> Any:
    """Return a class or function by its full name.

    Args:
        key: Config key that names it, for the message.

    Raises:
        UserError: There is none, or its file cannot be imported.
    """
    found, fault = _looked_up(target)
    if fault:
        raise UserError(f"{key}={target}: {fault}{'' if fault.endswith('?') else '.'}")
    return found


def check_named(config: DictConfig) -> None:
    """Check that all classes and functions that a config names are there.

    Raises:
        UserError: One is not, or its file cannot be imported.
    """
    plain: Any = OmegaConf.to_container(config, resolve=False)
    plain.pop("hydra", None)
    for key, node in nodes(plain):
        if isinstance(node, dict) and isinstance(target := node.get(TARGET), str) and "${" not in target:
            named(target, ".".join(map(str, (*key, TARGET))))


def _looked_up(target: str) -> tuple[Any, str]:
    """Return what has a name, or None and why there is nothing."""
    parts = target.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                continue  # a class, or nothing, has this name
            return None, _told(module, error)
        except Exception as error:  # whatever a file does when it is read
            return None, _told(module, error)
        for name in parts[count:]:
            if not hasattr(found, name):
                return None, f"{module} has no {name}; {near_matches(name, vars(found))}"
            found = getattr(found, name)
        return found, ""
    return None, f"there is no module {parts[0]}; its folder must be the one you work in, or stand in PYTHONPATH"


def _told(module: str, error: Exception) -> str:
    """Say why a module cannot be imported, and in which line of which file."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__ and f.filename[0] != "<"]
    frames = [frame for frame in frames if frame.filename != importlib.__file__]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{module} cannot be imported: {type(error).__name__}: {one_line(error).rstrip('.')}{place}"
