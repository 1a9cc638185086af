"""What a person reads on the terminal: which command to type, and an output that may go away in the middle of a run.

A closed pipe or a full disk stops the run in good order, as a signal does.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from callbacks.checkpoint import ask_to_stop

CONSOLE_VARIABLE = "TRIPTYCH_CONSOLE"  # the console command was typed; inherited by the processes that it starts
_SCRIPT = re.compile(r"\bpython (train|evaluate|generate|compare|report|study|export|demo)\.py\b")


def note_console_command() -> None:
    """Keep that ``triptych`` was typed and no script, which an installed package does not have."""
    os.environ[CONSOLE_VARIABLE] = "1"


def as_typed(text: str) -> str:
    """Name the commands in a text as the one of this process was named.

    Args:
        text: A text that names scripts, such as ``python train.py``.

    Returns:
        The same, with ``triptych train`` where the console command was typed.
    """
    return _SCRIPT.sub(r"triptych \1", text) if CONSOLE_VARIABLE in os.environ else text


def say_line(text: str) -> None:
    """Print a line in one write, which nothing that another thread or process prints comes in between."""
    print(f"{text}\n", end="", flush=True)  # noqa: T201


class Output:
    """Passes a stream's text on until the stream takes no more; then asks for a stop and drops what follows.

    Args:
        stream: A text stream with a file descriptor.

    Attributes:
        error: What the stream ended with, or None.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or note that it cannot be done."""
        try:
            self._stream.write(text)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Flush, or note that it cannot be done."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def end(self) -> None:
        """Write what is still buffered, without a word where that cannot be done: Python would complain at its end."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error, ask=False)

    def _give_up(self, error: OSError, ask: bool = True) -> None:
        if self.error is not None:
            return
        self.error = error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # for what is still buffered, and for child processes
        os.close(nowhere)
        if ask:
            ask_to_stop()


@contextmanager
def watched_output() -> Iterator[Output]:
    """Watch standard output while a script runs."""
    stream = sys.stdout
    if isinstance(stream, Output):
        yield stream
        return
    output = Output(stream)
    sys.stdout = output
    try:
        yield output
    finally:
        output.end()
        sys.stdout = stream


def lost(error: OSError | None) -> str:
    """Say why standard output takes no more; empty while it does."""
    return f"standard output could not be written: {error.strerror or error}" if error else ""


def is_closed_pipe(error: OSError | None) -> bool:
    """Say whether the reader of standard output has ended."""
    return error is not None and error.errno == errno.EPIPE
