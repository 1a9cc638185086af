"""Says which rank a run on several has lost, and that ranks wait for one another."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from generative.checks import checked
from generative.ranges import Positive

POLL_SECONDS = 0.5
SECONDS_TO_END = 10.0  # between the end of a rank and that of this process: a collective normally fails at once
FAILED = 3


@checked("callbacks.rank_watch")
class RankWatch(Callback):
    """Watches, in the first rank of a machine, over the processes of the others.

    A rank that ends early, such as by SIGKILL where memory runs out, takes the others with it: the collective that they
    are in fails, or never ends. This notes with the error that follows which rank it was; where none follows the process
    is ended. Where no batch is done for a while it says so once, and which rank is stopped; the collectives themselves
    give up after the time limit of ``torch.distributed``, 30 minutes.

    Args:
        wait_seconds: After so long without a batch it is said that the ranks wait.
    """

    def __init__(self, wait_seconds: Positive = 300.0) -> None:
        self.wait_seconds = wait_seconds
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._last_batch = time.monotonic()
        self._ended = threading.Event()
        self._advice = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        launcher = trainer.strategy.launcher
        processes = getattr(launcher, "procs", None) or []
        self._processes = {trainer.global_rank + 1 + i: process for i, process in enumerate(processes)}
        self._last_batch = time.monotonic()
        self._ended.clear()
        if self._processes:
            for thread in threading.enumerate():  # Lightning's own would end this process without a word
                if thread.name == "child-process-observer":
                    thread._run = lambda: True  # type: ignore[attr-defined]
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._ended.set()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self._last_batch = time.monotonic()

    on_validation_batch_end = on_test_batch_end = on_train_batch_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._ended.set()
        if trainer.world_size == 1 or not isinstance(exception, RuntimeError):
            return
        deadline = time.monotonic() + 2 * POLL_SECONDS
        while self._processes and not (lost := self._lost()) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 5)
        if self._processes and lost:
            exception.lost_rank = lost  # type: ignore[attr-defined]
        elif not self._processes and "onnection" in str(exception):
            exception.lost_rank = "another rank has ended"  # type: ignore[attr-defined]

    def _lost(self) -> str:
        for rank, process in self._processes.items():
            if code := process.poll():
                return _end_of(rank, code)
        return ""

    def _watch(self) -> None:
        said = False
        while not self._ended.wait(POLL_SECONDS):
            if lost := self._lost():
                if not self._ended.wait(SECONDS_TO_END):
                    for process in self._processes.values():
                        process.kill()
                    _say(f"{lost}; the other ranks waited for it without end and were ended too.")
                    os._exit(FAILED)
                return
            if not said and time.monotonic() - self._last_batch > self.wait_seconds:
                said = True
                stopped = [rank for rank, process in self._processes.items() if _is_stopped(process.pid)]
                which = f"rank {stopped[0]} is stopped, and" if stopped else "no batch is done:"
                _say(f"{which} the ranks have waited for one another for {self.wait_seconds:.0f} seconds.")


def _end_of(rank: int, code: int) -> str:
    if code == -signal.SIGKILL:
        return f"rank {rank} was ended by SIGKILL, as the system does where memory runs out"
    return f"rank {rank} has ended with {f'exit code {code}' if code > 0 else signal.Signals(-code).name}"


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:  # no /proc on this system, or the process is gone
        return False


def _say(text: str) -> None:
    # In one write: another rank or thread may print at once.
    print(f"{text}\n", end="", file=sys.stderr, flush=True)  # noqa: T201
