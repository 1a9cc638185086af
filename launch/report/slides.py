"""The grids that a run drew on its way: of each kind one picture at a time, with a slider over the steps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from launch.page.html import embedded

MAX_STEPS = 12  # of a kind of grid, evenly over the training
MAX_BYTES = 8_000_000  # of all pictures together; beyond that, fewer steps
_STEP = re.compile(r"step=(\d+)\.png")


@dataclass(frozen=True)
class Slides:
    """Grids of one kind.

    Attributes:
        name: The kind: the name of their folder.
        steps: Optimiser step of each.
        sources: ``data:`` address of each.
        num_drawn: How many there are in the run's folder.
    """

    name: str
    steps: list[int]
    sources: list[str]
    num_drawn: int


def slides_of(folder: Path) -> list[Slides]:
    """Read the grids of a run, those of the training first, then those of the final test.

    Args:
        folder: Its ``images``.
    """
    kinds: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/step=*.png")):
        if _STEP.fullmatch(path.name) and path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            kinds.setdefault(path.parent.name, []).append(path)
    shown = {name: _spread(paths, MAX_STEPS) for name, paths in kinds.items()}
    most = MAX_STEPS
    while most > 1 and sum(path.stat().st_size for paths in shown.values() for path in paths) > MAX_BYTES:
        most -= 1
        shown = {name: _spread(paths, most) for name, paths in kinds.items()}
    order = sorted(shown, key=lambda name: (name.endswith("test"), name))
    return [Slides(n, [_step(p) for p in shown[n]], [embedded(p) for p in shown[n]], len(kinds[n])) for n in order]


def _spread(paths: list[Path], most: int) -> list[Path]:
    """Choose the first, the last and evenly what is between; of one alone the last."""
    if most == 1:
        return paths[-1:]
    return [paths[round(i)] for i in np.linspace(0, len(paths) - 1, min(most, len(paths)))]


def _step(path: Path) -> int:
    found = _STEP.fullmatch(path.name)
    assert found is not None, "chosen by this pattern"
    return int(found.group(1))
