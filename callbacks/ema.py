"""Exponential moving average of the trainable network.

Own code rather than Lightning's ``EMAWeightAveraging``: that one (2.6) validates and saves the initial weights until its
first update, averages integer buffers, and stores frozen sub-modules twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from generative.checks import checked
from generative.ranges import BelowOne
from generative.weights import AVERAGES
from lightning_modules.sharding import gathered, local, part_of, release_weights


@checked("callbacks.ema")
class EMA(Callback):
    """Keeps ema <- decay * ema + (1 - decay) * weight after each optimiser step and evaluates with it.

    The decay warms up as min(decay, (1 + n) / (10 + n)) with n the number of updates so far (as in TensorFlow's moving
    averages). Parameters are averaged in float32; buffers are not averaged, the network's own are used. Before the first
    update nothing is swapped. The averages live on the weights' device and in the checkpoint, under this callback's state.
    Averages of sharded weights are sharded alike, and whole in the checkpoint.

    Args:
        decay: Final decay in [0, 1).
    """

    def __init__(self, decay: BelowOne = 0.999) -> None:
        self.decay = decay
        self.num_updates = 0
        self.average: dict[str, Tensor] = {}
        self._last_step = 0
        self._swapped = False

    @property
    def state_key(self) -> str:
        """Name of this callback's state in a checkpoint."""
        return AVERAGES[0]

    @staticmethod
    def _parameters(module: LightningModule) -> dict[str, Tensor]:
        return {name: p for name, p in module.network.named_parameters() if p.requires_grad}  # type: ignore[union-attr]

    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the initial weights, or continue from the checkpoint's averages."""
        parameters = self._parameters(pl_module)
        if self.num_updates:
            self.average = {name: part_of(self.average[name].to(p.device), p) for name, p in parameters.items()}
        else:
            self.average = {name: p.detach().float().clone() for name, p in parameters.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that training begins at; Lightning restores it only after ``on_fit_start``."""
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after each optimiser step (not after each accumulated batch)."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        parameters = self._parameters(pl_module)
        if all(p.grad is None for p in parameters.values()):  # a guard left the step out
            return
        weights = [local(parameters[name]).float() for name in self.average]
        torch._foreach_lerp_([local(average) for average in self.average.values()], weights, 1 - decay)
        self.num_updates += 1

    @torch.no_grad()
    def _exchange(self, module: LightningModule) -> None:
        release_weights(module.network)  # type: ignore[arg-type]
        for name, parameter in self._parameters(module).items():
            held = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name] = held.float()
        self._swapped = not self._swapped

    def _swap_in(self, module: LightningModule) -> None:
        if self.num_updates and not self._swapped:
            self._exchange(module)

    def _swap_out(self, module: LightningModule) -> None:
        if self._swapped:
            self._exchange(module)

    @contextmanager
    def swapped(self, module: LightningModule) -> Iterator[None]:
        """Hold the averaged weights in the module for a while; nests, and gives back also after an exception.

        Args:
            module: The module whose network is averaged.
        """
        outermost = not self._swapped
        self._swap_in(module)
        try:
            yield
        finally:
            if outermost:
                self._swap_out(module)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap in."""
        self._swap_in(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Swap out."""
        self._swap_out(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the raw weights back."""
        self._swap_out(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages; a checkpoint is never written while they are swapped in."""
        if self._swapped:
            raise RuntimeError("A checkpoint must not be written while the EMA weights are swapped in.")
        return {"num_updates": self.num_updates, AVERAGES[1]: gathered(self.average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the averages of a checkpoint."""
        self.num_updates = state_dict["num_updates"]
        self.average = dict(state_dict[AVERAGES[1]])
