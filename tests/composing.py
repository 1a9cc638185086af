"""Configs composed with less work, in the process of the tests and in those that it forks: the same ones, to the last flag."""

from __future__ import annotations

import pickle
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList, Overrides
from omegaconf import _utils, base, grammar_parser

_load = FileConfigSource.load_config
_choose = config_loader_impl.create_defaults_list
_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_chosen: dict[tuple[Any, ...], DefaultsList] = {}
_composed: dict[int, bytes] = {}


def remember() -> None:
    """Read the files of ``conf/`` once and in C, compose once what options are chosen, and parse an expression once.

    The values of a command line are set in a copy of what is composed of its options.
    """
    yaml.SafeLoader = yaml.CSafeLoader  # type: ignore[misc]
    FileConfigSource.load_config = load_config
    config_loader_impl.create_defaults_list = create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_options
    _utils.parse = base.parse = cache(grammar_parser.parse)  # a tree is only read


@cache
def _pickled(folder: str, path: str, changed: int) -> bytes:
    return pickle.dumps(_load(FileConfigSource("tests", f"file://{folder}"), path))


def load_config(source: FileConfigSource, config_path: str) -> Any:
    file = Path(source.path, source._normalize_file_name(config_path))
    if not file.exists():
        return _load(source, config_path)
    result = pickle.loads(_pickled(source.path, config_path, file.stat().st_mtime_ns))
    result.provider = source.provider
    return result


def create_defaults_list(repo: Any, config_name: str, overrides_list: list[Any], **how: bool) -> DefaultsList:
    values = Overrides(repo, overrides_list).config_overrides
    options = [override for override in overrides_list if all(override is not value for value in values)]
    sources = [source.full_path() for source in repo.get_sources()]
    key = (config_name, *(option.input_line for option in options), *sources, *how.values())
    if key not in _chosen:
        _chosen[key] = _choose(repo, config_name, options, **how)
    return replace(_chosen[key], config_overrides=values)


def compose_options(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    if id(defaults) not in _composed:  # one of those that are kept above
        _composed[id(defaults)] = pickle.dumps(_compose(loader, defaults, repo))
    return pickle.loads(_composed[id(defaults)])
