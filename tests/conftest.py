"""What all tests share: a quiet, two-threaded machine and a cache folder of their own."""

from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource


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


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """The system's own limit on the size of a file: a write beyond it fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
