"""Guards: a run that has diverged stops before it spoils its averages and its checkpoint."""

from __future__ import annotations

from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.checkpoint import LastCheckpoint


class NonFiniteLossError(RuntimeError):
    """The loss or the weights became NaN or infinite."""


class NonFiniteGuard(Callback):
    """Stops a run whose loss or weights are not finite, naming the step and the last good checkpoint.

    The loss is looked at before the backward pass, the first moment it exists: neither the optimiser nor the EMA has
    seen it then. On the CPU that is every step. On a GPU reading it would wait for the device, so the first bad step is
    noted on the device and read every n steps; until then the EMA may take in bad weights, but no checkpoint does:
    the note and the weights themselves are checked before each checkpoint is written, which stays the last good one.

    Each rank guards its own loss; the launcher ends the other ranks when one has stopped.

    Args:
        every_n_steps: Interval of reading the note on a GPU, in optimiser steps.

    Raises:
        ValueError: If the interval is below 1.
    """

    def __init__(self, every_n_steps: int = 50) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.guards.every_n_steps={every_n_steps} must be at least 1.")
        self.every_n_steps = every_n_steps
        self._first_bad_step: Tensor | None = None  # () int64 on the loss's device, -1 while all is well

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with a clean slate."""
        self._first_bad_step = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Look at the loss."""
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
        """Look at the last steps."""
        self._read_note(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep a bad state from replacing a good checkpoint."""
        self._read_note(trainer)
        for name, tensor in checkpoint["state_dict"].items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise NonFiniteLossError(_message(trainer, f"the weight {name} is not finite", trainer.global_step))

    def _read_note(self, trainer: Trainer) -> None:
        if self._first_bad_step is not None and (step := int(self._first_bad_step)) >= 0:
            raise NonFiniteLossError(_message(trainer, "the loss is not finite", step))


def _message(trainer: Trainer, what: str, step: int) -> str:
    path = LastCheckpoint.path(trainer)
    checkpoint = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint had been written"
    return f"Training stopped at step {step} because {what}; {checkpoint}."
