"""Jobs of a sweep and ranks of a run share a machine's cores; a job that is resumed keeps its number of threads."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.utilities import distributed

from launch import threads
from launch.run_folder import RunFolder, write_json

SHARE = "3"  # cores over jobs at once, as joblib sets it in its workers


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A job in a sweep whose user has set nothing."""
    for name in threads.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(threads.CHOSEN_VARIABLE, "")  # restored at the end, whatever is noted in between
    threads.note_choice()
    return RunFolder(tmp_path)


def started(run: RunFolder, threads: int) -> None:
    """Leave what a job has written when it is interrupted."""
    run.checkpoint.parent.mkdir()
    run.checkpoint.touch()
    write_json(run.record_path, {"hardware": {"threads": threads}})


def given(run: RunFolder, ranks: int = 1) -> set[str]:
    return set(threads.job_threads(run, ranks).values())


def test_a_single_job_has_all_cores(run: RunFolder) -> None:
    assert threads.job_threads(run, 1) == {}
    assert threads.job_threads(run, 2) == {}  # Lightning shares them among its ranks


def test_jobs_at_once_share_the_cores_and_so_do_their_ranks(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", SHARE)
    assert given(run) == {"3"}
    assert given(run, ranks=2) == {"1"}
    assert given(run, ranks=8) == {"1"}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_resumed_job_keeps_its_threads(run: RunFolder, at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if at_once:
        monkeypatch.setenv("OMP_NUM_THREADS", SHARE)
    started(run, 5)
    assert given(run, ranks=2) == {"5"}


@pytest.mark.parametrize("name", threads.VARIABLES)
def test_the_user_decides(run: RunFolder, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "7")
    threads.note_choice()
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # joblib adds what is missing
    started(run, 5)
    assert threads.job_threads(run, 2) == {}


@pytest.mark.parametrize("ranks", [1, 2, 1000])
def test_what_is_recorded_is_what_lightning_gives_to_a_rank(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "0")  # restored at the end
    monkeypatch.delenv("OMP_NUM_THREADS")
    recorded = threads.training_threads(SimpleNamespace(world_size=ranks, num_devices=ranks))
    if ranks > 1:
        distributed._set_num_threads_if_needed(ranks)
    assert torch.get_num_threads() == recorded
    torch.set_num_threads(before)
    os.environ.pop("OMP_NUM_THREADS", None)
    monkeypatch.setenv("OMP_NUM_THREADS", str(before))
    assert threads.training_threads(SimpleNamespace(world_size=ranks, num_devices=ranks)) == before
