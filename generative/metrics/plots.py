"""Plots that say more of a measurement than its numbers: a file beside this one that has some gives them as ``plots``.

``plots(values, record)`` takes what an evaluation measured, by ``<metric>/<output>``, and what one of its callbacks recorded.
It may find nothing there, as in records of other measurements and of older versions.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Plot:
    """A plot of lines.

    Attributes:
        title: Heading.
        x_label: Name of the horizontal axis.
        lines: (x, y) points by name, from left to right.
        references: Horizontal lines by name.
        is_logarithmic: Whether the horizontal axis is.
        note: What it shows, in a sentence.
    """

    title: str
    x_label: str
    lines: dict[str, Points]
    references: dict[str, float] = field(default_factory=dict)
    is_logarithmic: bool = False
    note: str = ""


def plots_of(values: Mapping[str, float], record: Mapping[str, Any]) -> list[Plot]:
    """Gather the plots of an evaluation from all files of this package.

    Args:
        values: What it measured.
        record: How; entries that are objects are those of its callbacks.
    """
    package = __name__.rpartition(".")[0]
    found: list[Plot] = []
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if draw := getattr(importlib.import_module(f"{package}.{module.name}"), "plots", None):
            for part in (part for part in record.values() if isinstance(part, dict)):
                found += draw(values, part)
    return found
