"""Checkpoints: written atomically, plain containers and tensors only, the newest kept as ``checkpoints/last.ckpt``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

FILE_NAME = "last.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it to disk and renames it, so that a kill leaves the previous file whole."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: Plain containers and tensors.
            path: File to write.
            storage_options: Not used.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        with temporary.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint that holds plain containers and tensors; nothing else is ever unpickled.

        Args:
            path: File to read.
            map_location: Where the tensors go; the CPU by default.
            weights_only: Not used: always true.

        Returns:
            The checkpoint.
        """
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


class Interrupted(Exception):
    """The run was asked to stop; its state is saved.

    Args:
        signal_number: The signal that asked.
        path: The checkpoint that was written.
        step: Optimiser step of the checkpoint.
    """

    def __init__(self, signal_number: int, path: Path, step: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(signal_number).name} at step {step}; saved {path}.")
        self.signal_number = signal_number


class LastCheckpoint(Checkpoint):
    """Saves the whole state every n optimiser steps, at the end, and when SIGTERM or Ctrl-C asks the run to stop.

    A signal is answered at the end of the running step: the state is saved and ``Interrupted`` is raised. A second
    Ctrl-C ends the process at once; the last periodic checkpoint is whole then too.

    Attributes:
        run_config: Resolved config of the run as plain containers; it is stored in the file.

    Args:
        every_n_steps: Interval in optimiser steps.
        signal_check_every_n_steps: With several ranks the signal is agreed upon by a collective, at this interval.

    Raises:
        ValueError: If the interval is not positive.
    """

    def __init__(self, every_n_steps: int = 500, signal_check_every_n_steps: int = 10) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.checkpoint.every_n_steps={every_n_steps} must be at least 1.")
        self.every_n_steps = every_n_steps
        self.run_config: dict[str, Any] = {}
        self.signal_check_every_n_steps = signal_check_every_n_steps
        self._last_saved = -1
        self._signal: int | None = None
        self._previous_handlers: dict[int, Any] = {}

    @staticmethod
    def path(trainer: Trainer) -> Path:
        """Return where the checkpoint of a run lies.

        Args:
            trainer: Trainer whose ``default_root_dir`` is the run folder.

        Returns:
            Path of ``last.ckpt``.
        """
        return Path(trainer.default_root_dir) / "checkpoints" / FILE_NAME

    def _save(self, trainer: Trainer) -> None:
        if trainer.global_step != self._last_saved:
            self._last_saved = trainer.global_step
            for logger in trainer.loggers:
                logger.save()
            trainer.save_checkpoint(self.path(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, so that the file speaks for itself."""
        checkpoint["config"] = self.run_config

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over SIGTERM and SIGINT for the time of the fit."""
        self._last_saved = trainer.global_step
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous_handlers[number] = signal.signal(number, self._on_signal)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal during the final test ends it at once: the state is saved already, a resumed run tests again."""
        path, step = self.path(trainer), trainer.global_step

        def stop(number: int, frame: FrameType | None) -> None:
            raise Interrupted(number, path, step)

        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous_handlers[number] = signal.signal(number, stop)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the interval or on a signal."""
        step = trainer.global_step
        if step % self.every_n_steps == 0:
            self._save(trainer)
        if self._asked_to_stop(trainer, step):
            self._save(trainer)
            raise Interrupted(self._signal or signal.SIGTERM, self.path(trainer), step)

    def _asked_to_stop(self, trainer: Trainer, step: int) -> bool:
        asked = self._signal is not None
        if trainer.world_size == 1:
            return asked
        if step % self.signal_check_every_n_steps:
            return False
        return trainer.strategy.reduce_boolean_decision(asked, all=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore_handlers()
