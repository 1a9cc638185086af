"""Real processes of ``train.py`` that are killed and looked at; forked from one that has imported everything already.

A start by fork takes a second instead of six. The process is one of its own all the same: it runs the script's main block
with the given command line, leads its own process group, writes its own log and starts further ranks as ever; with ``forks``
those and the jobs of a sweep are forked too, with the command, environment and streams that they would have had.
"""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import composing
import torch
import torch.distributed as dist
from helpers import ROOT, assert_same_state, read_json, tiny
from lightning.pytorch.strategies.launchers import subprocess_script

from callbacks.checkpoint import STOP_SIGNALS
from launch.sweep import processes as children

PATIENCE = 400  # seconds
_started: list[Run] = []
context = multiprocessing.get_context("forkserver")  # also for other processes that would have to import all this
context.set_forkserver_preload(
    ["launch.commands.train", "generative.networks", "lightning_modules", "callbacks", "datamodules"]
)


def arguments(experiment: str, steps: int, interval: int, trainer: str = "cpu") -> list[str]:
    """Overrides of a small run that saves every few steps and validates and draws a few times on the way."""
    own = [override for override in tiny(experiment) if override != "trainer.accelerator=cpu"]
    return [
        f"experiment={experiment}", *own, f"trainer={trainer}", f"trainer.max_steps={steps}",
        f"trainer.val_check_interval={2 * interval + 1}", f"callbacks.checkpoint.every_n_steps={interval}",
        "callbacks.image_grid.every_n_steps=1000",
    ]  # fmt: skip


def _run(log: str, command: list[str], forks: bool, out: str) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    os.dup2(file if out == log else os.open(out, os.O_WRONLY), 1)
    os.chdir(ROOT)
    composing.remember()
    _be(command, forks)


def _be(command: list[str], forks: bool) -> None:
    """Run a script; where it starts processes of its own, they are forked from what this one is now."""
    if forks:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:
            near.close()
            _serve(far)
        far.close()
        module = SimpleNamespace(**{**vars(subprocess), "Popen": partial(_Forked, near)})
        children.subprocess = subprocess_script.subprocess = module  # type: ignore[assignment]
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__")
        return
    sys.argv = [str(ROOT / command[0]), *command[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _serve(requests: socket.socket) -> NoReturn:
    """Start what is asked for until the process that asks is gone."""
    for number in (*STOP_SIGNALS, signal.SIGCHLD):  # the first are for the group
        signal.signal(number, signal.SIG_IGN)
    while True:
        message, streams, *_ = socket.recv_fds(requests, 1 << 20, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            answer, *streams = streams
            process = multiprocessing.get_context("fork").Process(target=_become, args=(json.loads(message), streams))
            process.start()
            with suppress(BrokenPipeError):
                os.write(answer, struct.pack("i", process.pid))
            process.join()
            with suppress(BrokenPipeError):
                os.write(answer, struct.pack("i", process.exitcode))
            os._exit(0)
        for stream in streams:
            os.close(stream)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    if request["process_group"] is not None:
        os.setpgid(0, request["process_group"])
    for number, stream in zip(request["streams"], streams, strict=True):
        os.dup2(stream, number)
        os.close(stream)
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    _be(request["command"], forks=True)


class _Forked:
    """What ``subprocess.Popen`` is for a Python script, as far as the launchers use it."""

    def __init__(
        self,
        requests: socket.socket,
        command: list[str],
        *,
        env: dict[str, str],
        cwd: str | None = None,
        stdin: int | None = None,
        stdout: Any = None,
        stderr: int | None = None,
        process_group: int | None = None,
    ) -> None:
        assert command[0] == sys.executable
        self._answer, theirs = os.pipe()
        streams = {1: 1 if stdout is None else stdout.fileno()}
        streams[2] = streams[1] if stderr == subprocess.STDOUT else 2
        if stdin == subprocess.PIPE:
            streams[0], self._stdin = os.pipe()  # closed when this process ends
        request = {
            "command": command[1:], "env": dict(env), "cwd": cwd or os.getcwd(),  # noqa: PTH109
            "process_group": process_group, "streams": list(streams),
        }  # fmt: skip
        socket.send_fds(requests, [json.dumps(request).encode()], [theirs, *streams.values()])
        os.close(theirs)
        if 0 in streams:
            os.close(streams[0])
        self.pid = struct.unpack("i", os.read(self._answer, 4))[0]
        self.returncode: int | None = None
        self._lock = threading.RLock()  # a signal may come while this thread waits, and its handler look too

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        if self._look(timeout) is None:
            raise subprocess.TimeoutExpired("", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _look(self, timeout: float | None) -> int | None:
        with self._lock:
            ready = self.returncode is None and select.select([self._answer], [], [], timeout)[0]
            if ready and self.returncode is None:
                self.returncode = struct.unpack("i", os.read(self._answer, 4))[0]
            return self.returncode


class Run:
    """A process of an entry script.

    Args:
        log: File that takes its output.
        command: Name of the script and its arguments.
        forks: Whether the jobs of a sweep and the further ranks that it starts are forked too, instead of started anew.
        out: What takes its standard output instead, such as a device or a named pipe; the log has its errors then.
    """

    def __init__(self, log: Path, *command: str, forks: bool = False, out: Path | None = None) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"
        self.log = log
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = context.Process(target=_run, args=(str(log), list(command), forks, str(out or log)))
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


def on_two_ranks(work: Callable[[int], Any], folder: Path) -> list[Any]:
    """Do something on two ranks that can talk to each other.

    Args:
        work: What each does, given its rank; a function of a module, and its answer one that ``torch.save`` writes.
        folder: An own folder, for what they leave each other.

    Returns:
        The answer of each.
    """
    other = context.Process(target=_on_rank, args=(1, work, folder), daemon=True)
    other.start()
    try:
        _on_rank(0, work, folder)  # this process is rank 0: one more is enough
        other.join(PATIENCE)
        assert other.exitcode == 0, f"rank 1 ended with exit code {other.exitcode}"
    finally:
        other.kill()
    return [torch.load(folder / f"answer_{rank}.pt", weights_only=True) for rank in range(2)]


def _on_rank(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    store, timeout = f"file://{folder}/store", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timeout)
    try:
        torch.save(work(rank), folder / f"answer_{rank}.pt")
    finally:
        dist.destroy_process_group()


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
