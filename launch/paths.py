"""Paths in a config: relative ones start at the folder of the command, and are kept absolute from then on."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from launch.errors import UserError

# Keys whose value is a file or folder to read, wherever they stand. What a run writes lies below paths.outputs.
PATH_KEYS = frozenset(
    {
        *("root", "train_root", "val_root", "test_root", "images"),
        *("objects_json", "train_json", "test_json", "new_test_json"),
        *("classifier", "label_classifier", "tokenizer", "space", "regression", "weights", "heads", "cache_dir"),
    }
)
# Keys as a whole: of shards paths, patterns and addresses, one or several; and the run that a training begins with.
WHOLE_KEYS = frozenset({"data.train", "data.val", "data.test", "init.run"})
WORDS = frozenset({"auto", "ema", "raw", "pixel"})  # no paths, whichever key has them
# The folders of an absolute path, or of one below a home folder, in running text; addresses and fractions have none.
_FOLDERS = re.compile(r"""(?<![\w.:</~…-])(?:~[\w.-]*)?/(?:[^\s'"`<>|;,:()\[\]{}/]+/)*(?=[^\s'"`<>|;,:()\[\]{}/])""")
_WINDOWS = re.compile(r"\b[A-Za-z]:\\(?:[^\s\\]+\\)*")
# A place on somebody's machine, alone or in a longer text: an absolute path, also of Windows, a home folder, a file: address.
_PLACE = re.compile(r"(?:\b(?:file|pipe):/*|(?<![\w./:<~)\]]))(?:~\w*)?(?:/[\w.+@%-]+)+/?|\b[A-Za-z]:\\\S+|\bpipe:.*")
PLACE = "PATH"  # what stands for one


def typed_path(key: str, value: str | Path) -> Path:
    """Return the path that a person typed; ``~`` stands for the home folder.

    Args:
        key: What the command line calls it.

    Raises:
        UserError: It begins with the home folder of nobody.
    """
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}={value}: there is no such home folder.") from error


def path_nodes(config: DictConfig) -> Iterator[tuple[DictConfig | ListConfig, Any, str]]:
    """Find the paths of a config.

    Args:
        config: A config, not resolved.

    Yields:
        The container, the key in it and the path; addresses are left out, and what refers to another key.
    """
    for container, key, name in _leaves(config, ""):
        value = container._get_node(key)._value()  # type: ignore[union-attr]
        if _is_path(name, value):
            yield container, key, value


def _leaves(node: DictConfig | ListConfig, name: str) -> Iterator[tuple[DictConfig | ListConfig, Any, str]]:
    if node._is_none() or node._is_missing() or node._is_interpolation():
        return
    for key in range(len(node)) if isinstance(node, ListConfig) else list(node):
        child = node._get_node(key)
        full = name if isinstance(node, ListConfig) else f"{name}.{key}".lstrip(".")
        if OmegaConf.is_config(child):
            yield from _leaves(child, full)  # type: ignore[arg-type]
        else:
            yield node, key, full


def _is_path(name: str, value: Any) -> bool:
    names_path = name.rpartition(".")[2] in PATH_KEYS or name in WHOLE_KEYS
    return names_path and isinstance(value, str) and value not in WORDS and not _is_address(value) and "${" not in value


def _is_address(value: str) -> bool:
    return value.startswith("pipe:") or "://" in value


def make_absolute(config: DictConfig) -> None:
    """Make the paths of a config absolute, so that they mean the same wherever a later command is typed.

    Args:
        config: A config; changed in place.
    """
    for container, key, value in list(path_nodes(config)):
        container._get_node(key)._set_value(_absolute(container._get_full_key(key), value))  # type: ignore[union-attr]


def absolute_path(name: str, value: Any) -> str | None:
    """Make a single value of a config absolute.

    Args:
        name: Its full key.

    Returns:
        The absolute path; None where the value is no path.
    """
    return _absolute(name, value) if _is_path(name, value) else None


def _absolute(name: str, value: str) -> str:
    return "::".join(_absolute_part(name, part) for part in value.split("::"))


def _absolute_part(name: str, value: str) -> str:
    path = typed_path(name, value).absolute()
    return str(path.resolve() if ".." in path.parts else path)


def is_there(key: str, text: str) -> bool:
    """Say whether a text names a file or folder: what is none may be a list, longer than the system takes a name.

    Args:
        key: What the command line calls it.

    Raises:
        UserError: It begins with the home folder of nobody.
    """
    try:
        return typed_path(key, text).exists()
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return False


def without_paths(config: DictConfig) -> DictConfig:
    """Return a config that says the same on every machine.

    Args:
        config: A config, not resolved.

    Returns:
        A copy whose paths are null.
    """
    copy = config.copy()
    for container, key, _ in list(path_nodes(copy)):
        container._get_node(key)._set_value(None)  # type: ignore[union-attr]
    return copy


def without_folders(text: str) -> str:
    """Take the folders of absolute paths out of a text that is handed around: what a machine's folders are called is its own.

    Args:
        text: A value or a sentence.

    Returns:
        The same with ``…/NAME`` for each absolute path.
    """
    text = _WINDOWS.sub("…/", re.sub(r"\bfile:/+", "/", text))
    if text.startswith("/") and not re.search(r"\n|\s[/~]", text):
        return f"…/{Path(text).name}"  # a path alone, which may have spaces
    return _FOLDERS.sub("…/", text)


def names_place(text: str) -> bool:
    """Say whether a text names a place on a machine: an absolute path, or a command."""
    return _PLACE.search(text) is not None


def portable(overrides: Iterable[str]) -> list[str]:
    """Return the overrides of a run as somebody else types them.

    Args:
        overrides: What was typed, or a record of it.

    Returns:
        The experiment first; without where the run lies and reports to; ``PATH`` for what was read from a file or folder.
    """
    kept = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.lstrip("+~").partition(".")[0] in ("paths", "hydra", "logger", "classifier"):
            continue
        kept.append(f"{key}={PLACE}" if _is_path(key.lstrip("+~"), value) or names_place(value) else override)
    return sorted(kept, key=lambda override: not override.startswith("experiment="))


def lies_inside(path: Path, folder: Path) -> bool:
    """Say whether a file is a folder's own: a link may lead to nothing outside.

    In the cache of the Hugging Face hub a snapshot's files are links to the blobs beside it, which are its own.
    """
    root = folder.resolve()
    blobs = [root.parents[1] / "blobs"] if root.parent.name == "snapshots" else []
    return any(path.resolve().is_relative_to(own) for own in (root, *blobs))
