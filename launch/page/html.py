"""Lays a page out as one HTML file that is readable without scripts and needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from launch.page import charts
from launch.paths import without_folders

HERE = Path(__file__).parent


def render(template: Path, **values: Any) -> str:
    """Fill in a template; everything that is data is escaped, and ``style`` is the style of all pages.

    Args:
        template: File of the template, which may import the parts of ``parts.html.j2``.
        **values: What it shows.

    Returns:
        The page.
    """
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        finalize=_said,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(style=Markup((HERE / "page.css").read_text()), **values)


def _said(value: Any) -> Any:
    """Take the folders of absolute paths out of whatever a template shows, but for markup of our own and images."""
    is_data = isinstance(value, str) and not isinstance(value, Markup) and not value.startswith("data:")
    return without_folders(value) if is_data else value


def embedded(path: Path) -> str:
    """Write an image file as an address that holds it: ``data:image/png;base64,...``."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@dataclass(frozen=True)
class Panels:
    """Charts of a kind with what explains their lines."""

    items: list[tuple[charts.Chart, Markup]]
    legend: list[tuple[Markup, str]]

    @classmethod
    def of(cls, drawn: Sequence[charts.Chart], explains_single_lines: bool = True) -> Panels | None:
        """Draw charts that have points at two places at least, as one is no curve; None where there are none.

        Args:
            drawn: The charts.
            explains_single_lines: Whether the line of a chart that has no other needs an explanation.
        """
        drawn = [chart for chart in map(charts.Chart.drawable, drawn) if chart.num_places > 1]
        if not drawn:
            return None
        items = [(chart, Markup(charts.render(chart))) for chart in drawn]
        explained = [chart.lines for chart in drawn if explains_single_lines or len(chart.lines) > 1]
        keys = charts.legend([line for lines in explained for line in lines])
        return cls(items, [(Markup(key), label) for key, label in keys])
