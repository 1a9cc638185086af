"""Progress: a live bar on a terminal, plain lines in a log file."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from torch import Tensor

from files.words import count
from generative.checks import checked
from generative.metrics.catalogue import metric_of, split_name
from generative.ranges import NonNegative, Positive

LIVE_REFRESH_SECONDS = 0.5  # reading the loss waits for a GPU, so not at every step


def format_duration(seconds: float) -> str:
    """Write a duration in seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@checked("callbacks.progress")
class TrainingProgress(ProgressBar):
    """Shows step, loss, speed, remaining time and the last validation metrics.

    On a terminal a live bar; elsewhere lines such as
    ``step 500/7000  7 %  loss 0.410  182 images/s  remaining 6:12  val PSNR mean 21.30 dB``. The loss is the mean since
    the last refresh or line, the speed leaves validation out, the remaining time includes it.

    Args:
        metrics: Logged validation metrics to show.
        every_percent: A line is written each time this share of the steps is done ...
        every_seconds: ... and when this long has passed since the last line.
    """

    def __init__(
        self,
        metrics: Sequence[str] = ("val/psnr/mean", "val/psnr/sample"),
        every_percent: Positive = 5.0,
        every_seconds: NonNegative = 30.0,
    ) -> None:
        super().__init__()
        self.metrics = list(metrics)
        self.every_percent = every_percent
        self.every_seconds = every_seconds
        self.console = Console(highlight=False)
        self._enabled = True
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._evaluation_start = 0.0
        self._evaluation_images = 0

    @property
    def is_enabled(self) -> bool:
        """Whether this rank shows anything; Lightning's ``print`` asks."""
        return self._enabled

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def print(self, *args: Any, **kwargs: Any) -> None:
        if self._enabled:
            self.console.print(*args, markup=False, soft_wrap=True)

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fit_start = time.monotonic()
        self._first_step = trainer.global_step
        self._last_step = trainer.global_step
        self._next_percent = 100 * trainer.global_step / max(1, trainer.max_steps) + self.every_percent
        self._begin_window()
        if not self.console.is_interactive:
            self.print(f"training from step {trainer.global_step} to {_total(trainer.max_steps)}")
        self._advance("training", trainer.global_step, trainer.max_steps)

    def _begin_window(self) -> None:
        self._window_start = time.monotonic()
        self._window_pause = 0.0
        self._images = 0
        self._losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._images += len(batch.image) * trainer.world_size
        if outputs is not None:
            self._losses.append(outputs["loss"].detach())
        if not self._enabled:
            self._losses.clear()
            return
        step, seconds = trainer.global_step, time.monotonic() - self._window_start
        if step == self._last_step:  # gradients are still being accumulated
            return
        self._last_step = step
        if self.console.is_interactive:
            is_due = seconds >= LIVE_REFRESH_SECONDS or step == trainer.max_steps
        else:
            percent = 100 * step / trainer.max_steps if trainer.max_steps > 0 else -math.inf
            is_due = percent >= self._next_percent or seconds >= self.every_seconds or step == trainer.max_steps
            while percent >= self._next_percent:
                self._next_percent += self.every_percent
        if is_due:
            self._report(trainer, step)
            self._begin_window()

    def _report(self, trainer: Trainer, step: int) -> None:
        facts = "  ".join(self._facts(trainer, step))
        if self.console.is_interactive:
            self._advance("training", step, trainer.max_steps, facts)
            return
        share = f"  {100 * step / trainer.max_steps:.0f} %" if trainer.max_steps > 0 else ""
        self.print(f"step {step}/{_total(trainer.max_steps)}{share}  {facts}")

    def _facts(self, trainer: Trainer, step: int) -> list[str]:
        now = time.monotonic()
        facts = []
        if self._losses:
            facts.append(f"loss {torch.stack(self._losses).float().mean().item():.3f}")
        seconds = now - self._window_start - self._window_pause
        facts.append(f"{self._images / max(seconds, 1e-9):,.0f} images/s")
        if trainer.max_steps > 0:
            seconds_per_step = (now - self._fit_start) / max(1, step - self._first_step)
            facts.append(f"remaining {format_duration((trainer.max_steps - step) * seconds_per_step)}")
        return facts + self._validation_facts(trainer)

    def _validation_facts(self, trainer: Trainer) -> list[str]:
        values = trainer.callback_metrics
        return [_fact(name, float(values[name])) for name in self.metrics if name in values]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    # Validation and test

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._evaluation_start = self._evaluation_line = time.monotonic()
        self._evaluation_images = 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluate("validation", trainer, batch, batch_idx, trainer.num_val_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = time.monotonic() - self._evaluation_start
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._window_pause += seconds
        if self._live is not None and "validation" in self._tasks:
            self._live.remove_task(self._tasks.pop("validation"))
        if trainer.sanity_checking:
            return
        if not self.console.is_interactive:
            facts = [
                f"{count(self._evaluation_images, 'image')} in {format_duration(seconds)}",
                *self._validation_facts(trainer),
            ]
            self.print(f"validation at step {trainer.global_step}  {'  '.join(facts)}")
        if trainer.state.fn != "fit":
            self._stop()

    on_test_start = on_validation_start

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._evaluate("test", trainer, batch, batch_idx, trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.console.is_interactive:
            seconds = time.monotonic() - self._evaluation_start
            self.print(f"test  {count(self._evaluation_images, 'image')} in {format_duration(seconds)}")
        self._stop()

    def _evaluate(
        self, name: str, trainer: Trainer, batch: Any, batch_idx: int, num_batches: Sequence[int | float]
    ) -> None:
        self._evaluation_images += len(batch.image) * trainer.world_size
        total = sum(num_batches)
        if self.console.is_interactive:
            self._advance(name, batch_idx + 1, total, count(self._evaluation_images, "image"))
        elif time.monotonic() - self._evaluation_line >= self.every_seconds:
            self._evaluation_line = time.monotonic()
            self.print(f"{name}  batch {batch_idx + 1}/{_total(total)}  {count(self._evaluation_images, 'image')}")

    # The live bar

    def _advance(self, name: str, done: int, total: float, facts: str = "") -> None:
        """Show a task's state on the live bar; nothing where there is no terminal."""
        if not self._enabled or not self.console.is_interactive:
            return
        if self._live is None:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            self._live.start()
        if name not in self._tasks:
            known_total = total if 0 < total < math.inf else None
            self._tasks[name] = self._live.add_task(name, total=known_total, facts="")
        self._live.update(self._tasks[name], completed=done, facts=facts)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._tasks.clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()


def _fact(name: str, value: float) -> str:
    split, _, metric = name.partition("/")
    key, output = split_name(metric)
    return f"{split} {metric_of(key).sentence(output, value)}"


def _total(total: float) -> str:
    return str(int(total)) if 0 < total < math.inf else "?"
