"""What all tests share: a quiet, two-threaded machine and a cache folder of their own."""

from __future__ import annotations

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=4, help="how often the test of kills ends a run with SIGKILL")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    patch = pytest.MonkeyPatch()
    patch.setenv("TRIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()
