"""What all tests share: a quiet, two-threaded machine and a cache folder of their own."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import composing
import pytest
import torch

composing.remember()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="how often the test of kills ends a run with SIGKILL")


LONG = (
    "test_sweep.py", "test_ranks.py", "test_faults.py", "test_resume.py", "test_experiments.py", "test_study.py",
    "test_tasks.py", "test_values.py", "test_latents.py", "test_extending.py", "test_docs.py", "test_export.py",
    "test_export_elsewhere.py", "test_compiled.py", "test_entry_points.py", "test_notebooks.py", "test_record.py",
    "test_training_settings.py",
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


@pytest.fixture(scope="session")
def tokenizer(_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small tokenizer of the scenes; who lets ``auto`` find it copies it among the own runs."""
    from helpers import train_here

    folder = tmp_path_factory.mktemp("tokenizer")
    return train_here(folder / "vqgan_scenes" / "run", "experiment=vqgan_scenes", f"paths.outputs={folder}").path


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """The system's own limit on the size of a file: a write beyond it fails half-way, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
