"""Checkpoints: written atomically, plain containers and tensors only; ``last.ckpt`` and the one before are kept."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from files.held import FolderGoneError, check_held
from files.whole import WriteError, whole_file
from generative.checks import checked
from generative.ranges import Count
from generative.weights import NotLoadedError, read_checkpoint

FILE_NAME = "last.ckpt"
PREVIOUS_NAME = "previous.ckpt"
RUN_KEY = "run"  # entry of a checkpoint that says what its run folder says
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to stop: all but SIGHUP where nohup has it ignored."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in STOP_SIGNALS if number != signal.SIGHUP or not ignored]


def ask_to_stop() -> None:
    """Ask this process to stop as a signal would, because standard output takes no more.

    No real SIGPIPE is sent or answered: a lost connection of a logger raises that one too, and is no reason to stop.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if callable(handler):
        handler(signal.SIGPIPE, None)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file, syncs it to disk and renames it; the checkpoint before is kept next to it.

    The order is: write ``.last.ckpt.tmp``, ``last.ckpt`` becomes ``previous.ckpt``, the temporary file becomes
    ``last.ckpt``. A kill or a loss of power at any moment leaves one of the two whole, and a full disk leaves both.

    Args:
        loaded: File and content of a checkpoint that was read and checked already: what a training continues from.
    """

    def __init__(self, loaded: tuple[Path, dict[str, Any]] | None = None) -> None:
        super().__init__()
        self._loaded = loaded

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: Plain containers and tensors.
            path: File to write.
            storage_options: Not used.
        """
        path = Path(path)
        before = path.with_name(PREVIOUS_NAME)
        with whole_file(path, sync=True, size=num_bytes(checkpoint), before=before) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Return a checkpoint that holds plain containers and tensors, on the CPU; nothing else is ever unpickled.

        Args:
            path: File to read, unless its content was handed in.
            map_location: Not used.
            weights_only: Not used: always true.
        """
        loaded, self._loaded = self._loaded, None
        return loaded[1] if loaded and loaded[0] == Path(path) else read_checkpoint(path)


def num_bytes(content: Any) -> int:
    """Return about how much room a checkpoint takes.

    Args:
        content: Plain containers and tensors.

    Returns:
        Bytes of its tensors.
    """
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    if isinstance(content, dict):
        return sum(map(num_bytes, content.values()))
    return sum(map(num_bytes, content)) if isinstance(content, list | tuple) else 0


class Interrupted(BaseException):
    """The run was asked to stop. Like ``KeyboardInterrupt``, no ``except Exception`` on the way may swallow it.

    Args:
        signal_number: The signal that asked.
        message: What was saved, after "Stopped by SIGTERM".
    """

    def __init__(self, signal_number: int, message: str) -> None:
        lost = "Stopped because standard output takes no more"
        super().__init__(
            f"{lost if signal_number == signal.SIGPIPE else f'Stopped by {signal.Signals(signal_number).name}'}{message}."
        )
        self.signal_number = signal_number


def asked_stop(error: BaseException | None) -> Interrupted | None:
    """Return the stop that an error came from.

    A signal may arrive in the middle of any library's work, and tidying up what is half done may then fail in its place.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Interrupted):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


@checked("callbacks.checkpoint")
class LastCheckpoint(Checkpoint):
    """Saves the whole state every n optimiser steps, at the end, and when a signal asks the run to stop.

    SIGTERM, SIGINT (Ctrl-C), SIGUSR2 (a cluster's warning before it ends a job), SIGHUP (a lost terminal; not under nohup),
    SIGXCPU (the limit of processor time) and a standard output that takes no more are answered at the end of the
    running step, also where they arrive during a validation, a grid or the writing of a checkpoint: the state is saved
    and ``Interrupted`` is raised. A second Ctrl-C ends the process at once; the last periodic checkpoint is whole then too.

    Attributes:
        run_config: Resolved config of the run as plain containers; it is stored in the file.
        run: What the run folder says besides it: config with its interpolations, overrides, record; stored in the file too,
            so that a checkpoint alone suffices to continue.

    Args:
        every_n_steps: Interval in optimiser steps.
        signal_check_every_n_steps: With several ranks the signal is agreed upon by a collective, at this interval.
    """

    def __init__(self, every_n_steps: Count = 500, signal_check_every_n_steps: Count = 10) -> None:
        self.every_n_steps = every_n_steps
        self.run_config: dict[str, Any] = {}
        self.run: dict[str, Any] = {}
        self.signal_check_every_n_steps = signal_check_every_n_steps
        self._last_saved = -1
        self._first_step = 0
        self._last_seen = -1
        self._between_steps = False
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

    def save(self, trainer: Trainer, between_steps: bool) -> None:
        """Save the state of this step, unless it is saved already.

        Args:
            trainer: The trainer; all its ranks must call this.
            between_steps: Whether a batch is about to begin, rather than the training to end.
        """
        if trainer.global_step != self._last_saved:
            check_held(self.path(trainer))  # on every rank, so that all stop at the same step
            for logger in trainer.loggers:
                logger.save()
            self._between_steps = between_steps
            trainer.save_checkpoint(self.path(trainer))
            self._between_steps = False
            self._last_saved = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, so that the file speaks for itself."""
        checkpoint["config"] = self.run_config
        checkpoint[RUN_KEY] = self.run
        if self._between_steps:
            _end_of_last_batch(checkpoint["loops"]["fit_loop"])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Begin with the first of the accumulated batches of a step, also where their number was changed."""
        before = checkpoint.get("config", {}).get("trainer", {}).get("accumulate_grad_batches")
        if before not in (None, trainer.accumulate_grad_batches) and "loops" in checkpoint:
            batches = checkpoint["global_step"] * trainer.accumulate_grad_batches
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for counts in (progress["total"], progress["current"]):
                counts.update(dict.fromkeys(("ready", "started", "processed", "completed"), batches))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the step that a run begins at, whose checkpoint is there already where it is resumed, and take over the signals.

        It is not there where the run is resumed from ``previous.ckpt``: a damaged ``last.ckpt`` was set aside by then.
        Not in ``on_fit_start``: Lightning restores the step after that, and adds signal handlers of its own, which leave a
        validation unfinished and, with several ranks, send to the other processes from inside the handler.
        """
        self._last_seen = self._first_step = trainer.global_step
        is_there = trainer.strategy.broadcast(self.path(trainer).exists())  # as rank 0 sees it: all save, or none does
        self._last_saved = trainer.global_step if is_there else -1
        self._handle_signals(self._on_signal)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A signal during the final test ends it at once: the state is saved already, a resumed run tests again."""

        def stop(number: int, frame: FrameType | None) -> None:
            raise Interrupted(number, f" in the final test; {self.path(trainer)} has the trained weights")

        self._handle_signals(stop)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def _handle_signals(self, handler: Callable[[int, FrameType | None], None]) -> None:
        for number in stop_signals():
            self._previous_handlers[number] = signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise Interrupted(number, " at once; what was saved before is whole")
        self._signal = self._signal or number

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save at the interval or on a signal, between two optimiser steps.

        At the start of the next step and not at the end of this one: by now its scalars are logged, so that a run that goes
        on from here has lost none; and never between batches whose gradients are accumulated.
        """
        step = trainer.global_step
        if step == self._last_seen:
            return
        self._last_seen = step
        if step % self.every_n_steps == 0:
            self.save(trainer, between_steps=True)
        if trainer.world_size == 1 or step % self.signal_check_every_n_steps == 0:
            self._stop_if_asked(trainer, between_steps=True)

    def _stop_if_asked(self, trainer: Trainer, between_steps: bool) -> None:
        asked = self._signal is not None
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.save(trainer, between_steps)
            raise Interrupted(
                self._signal or signal.SIGTERM, f" at step {trainer.global_step}; saved {self.path(trainer)}"
            )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final state, answer a signal that came after the last step, and give the signals back."""
        self.save(trainer, between_steps=False)
        self._stop_if_asked(trainer, between_steps=False)
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        self._previous_handlers = {}

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back, and note with an error where the run stood and where it can continue."""
        self._restore_handlers()
        if isinstance(exception, Interrupted):
            return
        if isinstance(exception, FolderGoneError):
            now = exception.now
            if now and (saved := _saved(now / "checkpoints")):
                exception.advice = f"; continue from step {saved[1]} with python train.py " + shlex.quote(
                    f"resume={now}"
                )
            return
        where, how = f" at step {trainer.global_step}; no checkpoint is there yet: ", "start again"
        if saved := _saved(self.path(trainer).parent):
            path, step = saved
            where = f" at step {trainer.global_step}; the last good checkpoint is {path} of step {step}: "
            how = f"continue with python train.py {shlex.quote(f'resume={trainer.default_root_dir}')}"
        if isinstance(exception, WriteError):
            exception.advice = f"{where}make room or repair the disk, then {how}"
        elif trainer.global_step > self._first_step:
            exception.add_note(where + how)


def _saved(folder: Path) -> tuple[Path, int] | None:
    """Return the newest whole checkpoint and its step, by the file itself: a save may fail after its file is written."""
    for name in (FILE_NAME, PREVIOUS_NAME):
        try:
            return folder / name, int(read_checkpoint(folder / name)["global_step"])
        except (NotLoadedError, KeyError, OSError):
            continue
    return None


def _end_of_last_batch(loop: dict[str, Any]) -> None:
    """Set the counters of a fit loop back from the start of a batch to the end of the one before.

    That is a moment at which Lightning takes up a loop again: the batch that is about to begin is not counted, and a
    validation that was due is made again.
    """
    for counts in (loop["epoch_loop.batch_progress"][kind] for kind in ("total", "current")):
        counts["ready"] = counts["completed"]
        counts["completed"] -= 1
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
