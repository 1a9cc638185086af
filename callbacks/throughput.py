"""Throughput: images per second, and the share of time in which training waits for its data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from callbacks.image_grid import PeriodicGrid
from files.cores import CoreWatch
from generative.checks import checked
from generative.ranges import Count

WARM_UP_STEPS = 3  # the first steps of a process allocate memory and compile


@dataclass
class _Tally:
    images: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0

    def add(self, images: int, seconds: float, wait_seconds: float) -> None:
        self.images += images
        self.seconds += seconds
        self.wait_seconds += wait_seconds


@checked("callbacks.throughput")
class Throughput(Callback):
    """Logs ``throughput/images_per_second`` (of all ranks) and ``throughput/data_wait_share``.

    A step lasts from the start of one training step to the start of the next. Its wait is what follows this callback's
    ``on_train_batch_end``: fetching, transfer and degradation of the next batch. Steps that a validation, a checkpoint
    or a grid of images follows are left out whole. Place it behind EMA and before the callbacks that work now and then.

    Times are the host's. On a GPU the device is waited for only where a value is logged, so the values are means over
    the interval, and the wait is the host's: data that the device never had to wait for still counts.

    Where other processes take the run's cores, it says so in one line, once (``CoreWatch``).

    Args:
        every_n_steps: Interval of logging in optimiser steps.
    """

    def __init__(self, every_n_steps: Count = 50) -> None:
        self.every_n_steps = every_n_steps
        self._grids: list[PeriodicGrid] = []
        self._cores: CoreWatch | None = None
        self._reset()

    def _reset(self) -> None:
        self._window = _Tally()
        self._warm_up_left = WARM_UP_STEPS
        self._step_start: float | None = None
        self._step_end = 0.0
        self._images = 0
        self._interrupted = False
        self._last_logged = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reset()
        self._last_logged = trainer.global_step
        self._cores = CoreWatch(pl_module.device.type)
        self._grids = [callback for callback in trainer.callbacks if isinstance(callback, PeriodicGrid)]  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        now = time.perf_counter()
        interrupted = self._interrupted or any(grid.last_step == trainer.global_step for grid in self._grids)
        if self._step_start is not None and not interrupted:
            if self._warm_up_left:
                self._warm_up_left -= 1
            else:
                self._window.add(self._images, now - self._step_start, now - self._step_end)
                if self._cores and (notice := self._cores.count(self._images, now - self._step_start)):
                    pl_module.print(notice)
        self._step_start = now
        self._interrupted = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images = len(batch.image) * trainer.world_size
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._last_logged:
            self._last_logged = step
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            if self._window.seconds:
                values = {
                    "throughput/images_per_second": self._window.images / self._window.seconds,
                    "throughput/data_wait_share": self._window.wait_seconds / self._window.seconds,
                }
                pl_module.log_dict(values, batch_size=len(batch.image))
                self._window = _Tally()
        self._step_end = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._interrupted = True

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._interrupted = True
