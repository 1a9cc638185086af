"""What all tests share: a quiet, two-threaded machine and a cache folder of their own."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList, Overrides
from omegaconf import _utils, base, grammar_parser


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="how often the test of kills ends a run with SIGKILL")


LONG = (
    "test_sweep.py", "test_ranks.py", "test_faults.py", "test_resume.py", "test_experiments.py", "test_study.py",
    "test_tasks.py", "test_values.py", "test_latents.py", "test_extending.py", "test_docs.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take long, so that no worker is left with one of them at the end."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else int(os.environ.get("OMP_NUM_THREADS", "2")))


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _files_of_conf_are_read_once() -> Iterator[None]:
    """A config is composed of some fifty files; those of ``conf/`` are read again only when they have changed."""
    patch, read = pytest.MonkeyPatch(), FileConfigSource.load_config

    @cache
    def pickled(folder: str, path: str, changed: int) -> bytes:
        return pickle.dumps(read(FileConfigSource("tests", f"file://{folder}"), path))

    def load_config(source: FileConfigSource, config_path: str) -> Any:
        file = Path(source.path, source._normalize_file_name(config_path))
        if not file.exists():
            return read(source, config_path)
        result = pickle.loads(pickled(source.path, config_path, file.stat().st_mtime_ns))
        result.provider = source.provider
        return result

    patch.setattr(FileConfigSource, "load_config", load_config)
    patch.setattr(yaml, "SafeLoader", yaml.CSafeLoader)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _options_are_composed_once() -> Iterator[None]:
    """A config is composed once of the options that are chosen; the values of the command line are set in a copy of it.

    Expressions in it are parsed once, too: a tree of one is only read.
    """
    patch, choose, compose = (
        pytest.MonkeyPatch(),
        config_loader_impl.create_defaults_list,
        ConfigLoaderImpl._compose_config_from_defaults_list,
    )
    chosen: dict[tuple[Any, ...], DefaultsList] = {}
    composed: dict[int, bytes] = {}

    def create_defaults_list(repo: Any, config_name: str, overrides_list: list[Any], **how: bool) -> DefaultsList:
        values = Overrides(repo, overrides_list).config_overrides
        options = [override for override in overrides_list if all(override is not value for value in values)]
        sources = [source.full_path() for source in repo.get_sources()]
        key = (config_name, *(option.input_line for option in options), *sources, *how.values())
        if key not in chosen:
            chosen[key] = choose(repo, config_name, options, **how)
        return replace(chosen[key], config_overrides=values)

    def compose_options(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
        if id(defaults) not in composed:  # one of those that are kept above
            composed[id(defaults)] = pickle.dumps(compose(loader, defaults, repo))
        return pickle.loads(composed[id(defaults)])

    patch.setattr(config_loader_impl, "create_defaults_list", create_defaults_list)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose_options)
    for module in (_utils, base):
        patch.setattr(module, "parse", cache(grammar_parser.parse))
    yield
    patch.undo()


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """The system's own limit on the size of a file: a write beyond it fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
