"""Throughput counts images, tells waiting from work, and leaves interruptions out."""

from __future__ import annotations

import pytest
import torch

from callbacks import DenoisingGrid, ImageGrid, Throughput, throughput
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
        self.device, self.logged = torch.device("cpu"), {}
        callback.on_train_start(self, self)

    def log_dict(self, values: dict[str, float], batch_size: int) -> None:
        self.logged[self.global_step] = values

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
    summary = run.callback.summary()
    assert summary["images"] == 8 * (20 - throughput.WARM_UP_STEPS)
    assert summary["images_per_second"] == pytest.approx(8)


@pytest.mark.parametrize("interruption", ["validation", "checkpoint", "grid", "denoising grid"])
def test_interruptions_are_left_out(clock, interruption: str) -> None:
    grid = DenoisingGrid() if interruption == "denoising grid" else ImageGrid()
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
    summary = run.callback.summary()
    assert summary["images"] == 8 * (20 - throughput.WARM_UP_STEPS - 2)
    assert summary["images_per_second"] == pytest.approx(8)
    assert run.logged[20]["throughput/data_wait_share"] == pytest.approx(0.1)


def test_in_a_real_run(restorer, data, make_trainer) -> None:
    callback = Throughput(every_n_steps=5)
    trainer = make_trainer(callback, max_steps=10)
    trainer.fit(restorer, data)
    # Of the 9 steps that a next one follows, the first 3 warm up and the fifth is followed by a validation.
    assert callback.summary()["images"] == 5 * 4
    assert trainer.callback_metrics["throughput/images_per_second"] > 0
    assert 0 < callback.summary()["data_wait_share"] < 1


def test_nothing_counted_yet() -> None:
    assert Throughput().summary()["images_per_second"] is None
