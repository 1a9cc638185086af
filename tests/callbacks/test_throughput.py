"""Throughput counts images, tells waiting from work, leaves interruptions out, and says who takes the cores."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from callbacks import ImageGrid, StepsGrid, Throughput, throughput
from files import cores
from generative.types import Batch


class _Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(throughput, "time", clock)
    return clock


class _Run:
    """Plays the hooks of steps of 4 images: 0.9 s of work, 0.1 s of waiting."""

    def __init__(self, callback: Throughput, clock: _Clock, grids: list[ImageGrid]) -> None:
        self.callback, self.clock = callback, clock
        self.callbacks, self.world_size, self.global_step = [callback, *grids], 2, 0
        self.device, self.logged, self.printed = torch.device("cpu"), {}, []
        callback.on_train_start(self, self)

    def log_dict(self, values: dict[str, float], batch_size: int) -> None:
        self.logged[self.global_step] = values

    def print(self, text: str) -> None:
        self.printed.append(text)

    def step(self, wait: float = 0.1) -> None:
        batch = Batch(torch.zeros(4, 1, 2, 2), torch.arange(4))
        self.callback.on_train_batch_start(self, self, batch, 0)
        self.clock.now += 0.9
        self.global_step += 1
        self.callback.on_train_batch_end(self, self, None, batch, 0)
        self.clock.now += wait


def test_images_of_all_ranks_and_the_share_of_waiting(clock) -> None:
    run = _Run(Throughput(every_n_steps=10), clock, [])
    for _ in range(21):
        run.step()
    assert run.logged.keys() == {10, 20}
    for values in run.logged.values():
        assert values["throughput/images_per_second"] == pytest.approx(8)
        assert values["throughput/data_wait_share"] == pytest.approx(0.1)


@pytest.mark.parametrize("interruption", ["validation", "checkpoint", "grid", "steps grid"])
def test_interruptions_are_left_out(clock, interruption: str) -> None:
    grid = StepsGrid() if interruption == "steps grid" else ImageGrid()
    run = _Run(Throughput(every_n_steps=10), clock, [grid])
    for number in range(1, 22):
        interrupted = number in (5, 15)
        run.step(wait=100.0 if interrupted else 0.1)
        if interrupted and interruption == "validation":
            run.callback.on_validation_start(run, run)
        elif interrupted and interruption == "checkpoint":
            run.callback.on_save_checkpoint(run, run, {})
        elif interrupted:
            grid.last_step = number
    for values in run.logged.values():
        assert values["throughput/images_per_second"] == pytest.approx(8)
        assert values["throughput/data_wait_share"] == pytest.approx(0.1)


def test_in_a_real_run(restorer, data, make_trainer) -> None:
    callback = Throughput(every_n_steps=5)
    trainer = make_trainer(callback, max_steps=10)
    trainer.fit(restorer, data)
    assert trainer.callback_metrics["throughput/images_per_second"] > 0
    assert 0 < trainer.callback_metrics["throughput/data_wait_share"] < 1


def test_the_notice_of_a_run_is_printed(clock, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(cores.CoreWatch, "count", lambda watch, *step: counted.append(step) or "a notice")
    run = _Run(Throughput(), clock, [])
    for _ in range(throughput.WARM_UP_STEPS + 2):
        run.step()
    assert run.printed == ["a notice"]
    assert counted == [(8, pytest.approx(1.0))]


class _Counters:
    """Counters of two threads on two cores that are moved by hand, second by second of a training that continues."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.computed, self.waited = 0.0, 0.0, {"1": 0.0, "2": 0.0}
        monkeypatch.setattr(cores, "core_times", self.read)
        monkeypatch.setattr(cores, "usable_cores", lambda: 2)
        monkeypatch.setattr(cores.torch, "get_num_threads", lambda: 2)
        monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
        self.watch = cores.CoreWatch("cpu")

    def read(self) -> cores.CoreTimes:
        return cores.CoreTimes(self.now, self.computed, dict(self.waited))

    def train(self, seconds: int, rate: int, computed: float = 2.0, waited: float = 0.0) -> list[str]:
        """Each second so many images, core seconds of both threads, and seconds of waiting of each."""
        said = []
        for _ in range(seconds):
            self.pause(computed, waited)
            said.append(self.watch.count(rate, 1.0))
        return [line for line in said if line]

    def pause(self, computed: float, waited: float) -> None:
        self.now += 1
        self.computed += computed
        self.waited = {thread: value + waited for thread, value in self.waited.items()}


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> _Counters:
    return _Counters(monkeypatch)


BUSY = {"computed": 1.33, "waited": 0.33}  # one busy process beside two threads


def test_cores_taken_by_others_are_told_once_with_what_helps(counters: _Counters) -> None:
    assert counters.train(100, rate=165) == []
    (line,) = counters.train(300, rate=44, **BUSY)
    assert line.startswith("44 images/s where this run has made 165: other processes take 0.7 of the 2 cores")
    assert "OMP_NUM_THREADS=1" in line
    assert "OMP_WAIT_POLICY=PASSIVE" in line
    assert "\n" not in line


def test_a_run_that_was_never_alone_is_told_too(counters: _Counters) -> None:
    (line,) = counters.train(100, rate=44, **BUSY)
    assert line.startswith("44 images/s: other processes take 0.7 of the 2 cores")


def test_one_thread_and_a_gpu_are_told_without_a_setting(counters: _Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    counters.watch.device = "cuda"
    assert "OMP" not in counters.train(100, rate=44, **BUSY)[0]
    monkeypatch.setattr(cores.torch, "get_num_threads", lambda: 1)
    counters.watch = cores.CoreWatch("cpu")
    assert "OMP" not in counters.train(100, rate=44, **BUSY)[0]


@pytest.mark.parametrize(
    ("rate", "computed", "waited"),
    [(44, 0.4, 0.01), (44, 2.0, 2.0), (150, 1.9, 0.05)],
    ids=["a slow disk", "its own threads crowd each other", "a little noise"],
)
def test_other_reasons_are_not_called_taken_cores(
    counters: _Counters, rate: int, computed: float, waited: float
) -> None:
    assert counters.train(100, rate=165) + counters.train(300, rate, computed, waited) == []


def test_a_short_disturbance_is_not_told(counters: _Counters) -> None:
    for _ in range(5):
        assert counters.train(50, rate=165) + counters.train(20, rate=44, **BUSY) == []
        for _ in range(30):
            counters.pause(computed=2.0, waited=0.5)  # a validation: nothing is counted


def test_a_system_without_counters_says_nothing(counters: _Counters, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "core_times", lambda: None)
    counters.watch = cores.CoreWatch("cpu")
    assert counters.train(100, rate=165) + counters.train(300, rate=44, **BUSY) == []


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not count")
def test_the_counters_of_this_system_grow() -> None:
    before = cores.core_times()
    while time.process_time() - before.computed < 0.01:
        pass
    after = cores.core_times()
    assert str(os.getpid()) in after.waited
    assert all(after.waited[thread] >= value for thread, value in before.waited.items() if thread in after.waited)
    assert 0 <= cores.cores_taken(before, after) <= cores.usable_cores()
