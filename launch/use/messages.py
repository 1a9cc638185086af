"""What a call that reads or writes pictures tells the person at the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from files.words import count

SOFTWARE = "Triptych generate.py"  # in the header of PNG files


def say(line: str) -> None:
    """Print a line for a person, whatever is in the names that it holds."""
    Console(stderr=True).print(line, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def told_when_stopped(written: Sequence[Path], num_images: int, target: Path) -> Iterator[None]:
    """Say what is there already where an error or a signal ends a call.

    Args:
        written: The files that are written, which grow meanwhile.
        num_images: How many it was to be.
        target: Their folder.
    """
    try:
        yield
    except BaseException:
        if written:
            say(f"{len(written)} of {count(num_images, 'image')} had been written to {target} before this, whole")
        raise
