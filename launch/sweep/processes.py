"""Processes that this one runs: what they print goes to a file and this terminal, and a signal is handed on to all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from callbacks.checkpoint import stop_signals
from launch.output import say_line
from launch.sweep.parent import PARENT_VARIABLE

POLL_SECONDS = 0.2
ROOT = Path(__file__).resolve().parents[2]


def program(name: str) -> list[str]:
    """Return what starts a command: its script in a source tree, wherever it was typed; an installed package has none.

    Args:
        name: Name of the command, such as ``train``.
    """
    script = [str(ROOT / f"{name}.py")] if (ROOT / "pyproject.toml").exists() else ["-m", f"launch.commands.{name}"]
    return [sys.executable, *script]


class Children:
    """The processes that run now, and the signal that asked this one to stop.

    Attributes:
        stopped_by: Number of the signal; None before.
    """

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self._frame: FrameType | None = None
        self._previous: dict[int, Any] = {}
        self._processes: set[subprocess.Popen[bytes]] = set()

    def run(
        self, command: Sequence[str], log_path: Path, variables: Mapping[str, str], label: str | None = None
    ) -> int:
        """Run a process to its end; it ends when this one is gone.

        Args:
            log_path: What it prints is added to this file.
            variables: Environment variables of its own.
            label: Begins each of its lines on this terminal; None: they are in the file alone.

        Returns:
            Its exit code; 128 and the number of the signal that ended it.
        """
        begin = log_path.stat().st_size if log_path.exists() else 0
        # A group of its own: Ctrl-C reaches it through this process, once. Its input ends with this process, however that ends.
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables, PARENT_VARIABLE: "1"},
                process_group=0,
            )
        self._processes.add(process)
        try:
            if self.stopped_by is not None:  # while the process was started
                process.send_signal(signal.SIGTERM)
            self._follow(process, log_path, begin, label)
        finally:
            self._processes.discard(process)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    @staticmethod
    def _follow(process: subprocess.Popen[bytes], log_path: Path, begin: int, label: str | None) -> None:
        if label is None:
            process.wait()
            return
        with log_path.open(errors="replace") as text:
            text.seek(begin)
            line = ""
            while True:
                ended = process.poll() is not None
                for part in text:  # the last one may be a line that is still being written
                    line += part
                    if line.endswith("\n"):
                        say_line(f"{label} {line.rstrip()}" if line.strip() else "")
                        line = ""
                if ended:
                    if line:
                        say_line(f"{label} {line}")
                    return
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL_SECONDS)

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        again = self.stopped_by is not None and number == signal.SIGINT
        self.stopped_by, self._frame = number, frame
        for process in list(self._processes):
            if again:
                with suppress(ProcessLookupError):  # it has just ended
                    os.killpg(process.pid, signal.SIGKILL)
            elif process.poll() is None:
                process.send_signal(signal.SIGTERM)

    @contextmanager
    def handed_on(self) -> Iterator[None]:
        """Hand a first signal on as SIGTERM, on which a run saves its state and ends; a second one ends it at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._previous = {number: signal.signal(number, self._hand_on) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def call_previous(self) -> None:
        """Do what was to be done on the signal: submitit queues the job again and ends the process."""
        handler = None if self.stopped_by is None else self._previous.get(self.stopped_by)
        if self.stopped_by == signal.SIGUSR2 and callable(handler):
            handler(self.stopped_by, self._frame)
