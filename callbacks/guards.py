"""Guards: a run that has diverged stops before it spoils its averages and its checkpoint."""

from __future__ import annotations

import math
import statistics
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from callbacks.checkpoint import PREVIOUS_NAME, LastCheckpoint
from generative.checks import checked
from generative.ranges import AtLeastOne, Count
from generative.weights import NotLoadedError, first_not_finite, read_checkpoint
from lightning_modules.sharding import local

NORMAL_SPREAD = 1.4826  # standard deviation of a normal distribution in median absolute deviations
SMALLEST_SPREAD = 0.1  # of the median: values that hardly vary make no spike of a small change


class NonFiniteLossError(RuntimeError):
    """The loss or the weights became NaN or infinite."""


@checked("callbacks.guards")
class NonFiniteGuard(Callback):
    """Stops a run whose loss or weights are not finite, naming the step and the last good checkpoint.

    The loss is looked at before the backward pass, the first moment it exists: neither the optimiser nor the EMA has
    seen it then. On the CPU that is every step. On a GPU reading it would wait for the device, so the first bad step is
    noted on the device and read every n steps; until then the EMA may take in bad weights, but no checkpoint does:
    the note and the weights themselves are checked before each checkpoint is written, which stays the last good one.

    Each rank guards its own loss; the launcher ends the other ranks when one has stopped.

    Args:
        every_n_steps: Interval of reading the note on a GPU, in optimiser steps.
    """

    def __init__(self, every_n_steps: Count = 50) -> None:
        self.every_n_steps = every_n_steps
        self._first_bad_step: Tensor | None = None  # () int64 on the loss's device, -1 while all is well

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._first_bad_step = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        step = trainer.global_step
        is_finite = loss.detach().isfinite().all()
        if loss.device.type == "cpu":
            if not is_finite:
                raise NonFiniteLossError(_message(trainer, f"the loss is {loss.item()}", step))
            return
        if self._first_bad_step is None:
            self._first_bad_step = torch.full((), -1, device=loss.device)
        is_first = ~is_finite & (self._first_bad_step < 0)
        self._first_bad_step = torch.where(is_first, step, self._first_bad_step)
        if step % self.every_n_steps == 0:
            self._read_note(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read_note(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read_note(trainer)
        for name, tensor in checkpoint["state_dict"].items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise NonFiniteLossError(_message(trainer, f"the weight {name} is not finite", trainer.global_step))

    def _read_note(self, trainer: Trainer) -> None:
        if self._first_bad_step is not None and (step := int(self._first_bad_step)) >= 0:
            raise NonFiniteLossError(_message(trainer, "the loss is not finite", step))


class SpikeError(RuntimeError):
    """The loss or the gradient jumped far above its level."""


@checked("callbacks.spikes")
class SpikeGuard(Callback):
    """Leaves out steps whose loss or gradient norm is a spike, or stops at the first; before optimiser and EMA see them.

    A value is a spike where it exceeds the median of the last ``window`` steps by more than ``factor`` times their spread:
    1.48 times the median absolute deviation (the standard deviation, were they normal), but at least a tenth of the
    median. A step left out has no gradient: weights, the optimiser's moments and the EMA stay as they are, while the step
    counts and the learning rate continues. What a forward pass itself changes, such as the statistics of batch norm and
    codes that are moving averages, is not undone. A level that stays high for more than ``patience`` steps is no spike,
    but a new level (a discriminator that begins, say): the window begins anew.

    The norm is that before clipping, over all ranks, and the loss their mean, so that all decide alike. Reading the two
    numbers waits for the device, once a step. A gradient that is not finite stops the run, as a loss does.

    Attributes:
        num_skipped: Steps left out so far; logged as ``guard/skipped_steps``.

    Args:
        action: ``skip`` or ``stop``.
        factor: How many spreads above the median are a spike.
        window: How many steps make the level; none is judged before.
        patience: How many steps in a row are left out at most.
    """

    def __init__(
        self,
        action: Literal["skip", "stop"] = "skip",
        factor: AtLeastOne = 30.0,
        window: Count = 100,
        patience: Count = 10,
    ) -> None:
        self.action = action
        self.factor = factor
        self.window = window
        self.patience = patience
        self.num_skipped = 0
        self._levels: dict[str, list[float]] = {"loss": [], "gradient norm": []}  # of the last steps taken
        self._num_in_a_row = 0
        self._loss: Tensor | float = 0.0  # sum over accumulated batches: Lightning divides each by their number

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._loss = self._loss + loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        factor = getattr(pl_module, "accumulated_factor", 1.0)  # which the module, whose turn is next, will apply
        values = {name: factor * value for name, value in self._read(trainer, self._loss, parameters).items()}
        self._loss = 0.0
        if not all(map(math.isfinite, values.values())):
            if getattr(trainer.precision_plugin, "scaler", None) is None:  # a loss scaler leaves such steps out itself
                name = next(name for name, value in values.items() if not math.isfinite(value))
                raise NonFiniteLossError(_message(trainer, f"the {name} is {values[name]}", trainer.global_step))
            return
        spike = next((name for name, value in values.items() if self._is_spike(name, value)), None)
        if spike is None:
            self._take(values)
            return
        median = statistics.median(self._levels[spike])
        what = f"the {spike} is {values[spike]:.4g} where the median of the last {self.window} steps is {median:.4g}"
        if self.action == "stop":
            raise SpikeError(_message(trainer, what, trainer.global_step))
        self._num_in_a_row += 1
        if self._num_in_a_row > self.patience:  # it stays: this is the level now
            self._levels = {name: [] for name in self._levels}
            self._take(values)
            return
        self.num_skipped += 1
        rank_zero_warn(f"step {trainer.global_step} is left out: {what}")
        for parameter in parameters:
            parameter.grad = None  # optimisers and the EMA pass over what has no gradient

    @staticmethod
    def _read(trainer: Trainer, loss: Tensor | float, parameters: list[Tensor]) -> dict[str, float]:
        norm = torch.nn.utils.get_total_norm([local(p.grad) for p in parameters if p.grad is not None])
        values = torch.stack([torch.as_tensor(loss, device=norm.device).float(), norm.float().square()])
        if trainer.world_size > 1:
            values = trainer.strategy.reduce(values, reduce_op="mean")
        loss_value, square = values.tolist()
        return {"loss": loss_value, "gradient norm": math.sqrt(square) if square >= 0 else square}

    def _is_spike(self, name: str, value: float) -> bool:
        level = self._levels[name]
        if len(level) < self.window:
            return False
        median = statistics.median(level)
        deviation = statistics.median(abs(x - median) for x in level)
        return value - median > self.factor * max(NORMAL_SPREAD * deviation, SMALLEST_SPREAD * abs(median))

    def _take(self, values: dict[str, float]) -> None:
        self._num_in_a_row = 0
        for name, value in values.items():
            self._levels[name] = [*self._levels[name], value][-self.window :]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("guard/skipped_steps", float(self.num_skipped), batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"levels": self._levels, "num_skipped": self.num_skipped, "num_in_a_row": self._num_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._levels = dict(state_dict["levels"])
        self.num_skipped = state_dict["num_skipped"]
        self._num_in_a_row = state_dict["num_in_a_row"]


def _message(trainer: Trainer, what: str, step: int) -> str:
    return f"Training stopped at step {step} because {what}; {good_checkpoint(trainer)}."


def good_checkpoint(trainer: Trainer) -> str:
    """Say from which checkpoint a run can continue: the newest one that is whole and whose weights are finite.

    Args:
        trainer: The trainer of the run.

    Returns:
        Words for a message.
    """
    last = LastCheckpoint.path(trainer)
    bad: list[str] = []
    for path in (last, last.with_name(PREVIOUS_NAME)):
        try:
            checkpoint = read_checkpoint(path)
            fault = f"its weight {name} is not finite" if (name := first_not_finite(checkpoint)) else None
        except FileNotFoundError:
            continue
        except (NotLoadedError, KeyError, TypeError, OSError) as error:
            fault = str(error)
        if fault is None:
            passed_over = f" (resume= passes over {last}: {bad[0]})" if bad else ""
            return f"the last good checkpoint is {path} of step {checkpoint['global_step']}{passed_over}"
        bad.append(fault)
    return f"no good checkpoint is there: {last} is bad, {bad[0]}" if bad else "no checkpoint had been written"
