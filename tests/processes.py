"""Real processes of ``train.py`` that are killed and looked at; forked from one that has imported everything already.

A start by fork takes a second instead of six. The process is one of its own all the same: it runs the script's main block
with the given command line, leads its own process group, writes its own log and starts further ranks as ever.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from helpers import ROOT, assert_same_state, read_json, tiny

PATIENCE = 400  # seconds
_started: list[Run] = []
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["train", "generative.networks", "lightning_modules", "callbacks", "datamodules"])


def arguments(experiment: str, steps: int, interval: int, trainer: str = "cpu") -> list[str]:
    """Overrides of a small run that saves every few steps and validates and draws a few times on the way."""
    own = [override for override in tiny(experiment) if override != "trainer.accelerator=cpu"]
    return [
        f"experiment={experiment}", *own, f"trainer={trainer}", f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={2 * interval + 1}", f"callbacks.checkpoint.every_n_steps={interval}",
        "callbacks.image_grid.every_n_steps=1000",
    ]  # fmt: skip


def _run(log: str, command: list[str]) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(ROOT)
    sys.argv = [str(ROOT / command[0]), *command[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


class Run:
    """A process of an entry script.

    Args:
        log: File that takes its output.
        command: Name of the script and its arguments.
    """

    def __init__(self, log: Path, *command: str) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        self.log = log
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = _context.Process(target=_run, args=(str(log), list(command)))
        self.process.start()
        _started.append(self)

    @property
    def output(self) -> str:
        """What it has printed so far, with what earlier processes of the same log have."""
        return self.log.read_text() if self.log.exists() else ""

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None

    def until(self, condition: Callable[[], Any], pause: float = 0.02) -> None:
        """Wait for something while it runs, with so many seconds between two looks."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert not self.ended, f"ended before it could be stopped\n{self.output}"
            assert time.monotonic() < deadline, f"nothing happened\n{self.output}"
            time.sleep(pause)

    def send(self, number: int, group: bool = True) -> None:
        """Send a signal to the process, or to its whole group."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def kill(self) -> None:
        """End the whole group with SIGKILL; it must have been running."""
        assert not self.ended, f"ended before it was killed\n{self.output}"
        with suppress(ProcessLookupError):  # the group does not exist in the first milliseconds
            self.send(signal.SIGKILL)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL, self.output

    def finished(self, code: int = 0) -> str:
        """Wait for its end and return what it printed."""
        self.process.join(PATIENCE)
        assert self.process.exitcode == code, f"exit code {self.process.exitcode}\n{self.output}"
        return self.output

    def group_is_gone(self) -> bool:
        """Say whether no process of the group is left."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return True
        return False


def end_all() -> None:
    """End what a test has left running."""
    while _started:
        run = _started.pop()
        with suppress(ProcessLookupError):
            run.send(signal.SIGKILL)
        run.process.join()


def scalars(folder: Path) -> list[dict[str, str]]:
    """Rows of ``metrics.csv`` without the times that were measured."""
    with (folder / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("throughput")} for row in csv.DictReader(file)]
    return [row for row in rows if any(v for k, v in row.items() if k != "step")]


def assert_same_run(a: Path, b: Path) -> None:
    """Assert that two runs ended with the same bits: weights, optimiser, every callback's state, and records."""
    left, right = (torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (a, b))
    assert left["global_step"] == right["global_step"]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_same_state(left[part], right[part], part)
    for name in ("EMA", "SpikeGuard"):
        assert_same_state(left["callbacks"][name], right["callbacks"][name], name)
    assert read_json(a / "metrics.json")["metrics"] == read_json(b / "metrics.json")["metrics"]
    assert scalars(a) == scalars(b)
