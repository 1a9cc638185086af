"""Line charts as inline SVG: text stays text, colours come from the page's style and so follow its theme."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape

WIDTH, HEIGHT = 400, 270  # of the drawing, in px at full size
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 40
NUM_TICKS = 5
NUM_COLORS = 8
DASHES = ("", "6 4", "2 3", "9 3 2 3")
NAME_SIZE = 110, 24  # px that the name of a horizontal line takes, to the right and around it
TICK_DISTANCE = 26  # px, at least, between the labels of the horizontal axis


@dataclass(frozen=True)
class Point:
    """A point with its spread.

    Attributes:
        x: Position along the axis.
        deviation: Standard deviation of the value, or None.
        note: What a pointer over it tells.
    """

    x: float
    y: float
    deviation: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: Its name.
        points: Its points, from left to right.
        color: Number of its colour.
        dash: Number of its dash pattern.
        has_marks: Whether each point is marked.
    """

    label: str
    points: list[Point]
    color: int
    dash: int = 0
    has_marks: bool = True


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: Heading.
        x_label: Name of the horizontal axis.
        lines: What it shows.
        references: Horizontal lines by name, such as the degraded input.
        is_logarithmic: Whether the horizontal axis is.
        note: Text under it.
        has_logarithmic_values: Whether the vertical axis is, where all values are above 0.
        events: Vertical lines by name, such as the steps at which a run was resumed.
    """

    title: str
    x_label: str
    lines: list[Line]
    references: dict[str, float] = field(default_factory=dict)
    is_logarithmic: bool = False
    note: str = ""
    has_logarithmic_values: bool = False
    events: dict[str, float] = field(default_factory=dict)

    @property
    def num_places(self) -> int:
        """How many places along the axis have a point."""
        return len({point.x for line in self.lines for point in line.points})

    def drawable(self) -> Chart:
        """Leave out what has no place on it, such as the figures of a sampling that diverged, and lines without points."""
        lines = [replace(line, points=[_placed(p) for p in line.points if _is_finite(p.x, p.y)]) for line in self.lines]
        references = {name: value for name, value in self.references.items() if _is_finite(value)}
        return replace(self, lines=[line for line in lines if line.points], references=references)


def _is_finite(*values: float) -> bool:
    return all(map(math.isfinite, values))


def _placed(point: Point) -> Point:
    return point if point.deviation is None or _is_finite(point.deviation) else replace(point, deviation=None)


def nice_ticks(low: float, high: float, count: int = NUM_TICKS) -> list[float]:
    """Choose about ``count`` round numbers over a range: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [step * number for number in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Choose ticks of a logarithmic axis, whose lower end is above 0.

    Round numbers within a decade; powers of two over less than two decades from 1 on; else 1, 2 and 5 times powers of ten,
    thinned out.
    """
    if high / low < 10:
        return nice_ticks(low, high)
    if low >= 0.9 and high / low <= 100:
        return [2.0**n for n in range(math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9) + 1)]
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high / low < 300 else (1,)
    return [f * 10.0**d for d in decades for f in factors if low * 0.999 <= f * 10.0**d <= high * 1.001]


def tick_text(value: float) -> str:
    """Write a number at an axis in few characters."""
    if value != 0 and (abs(value) >= 10_000 or abs(value) < 0.001):
        if abs(value) >= 10_000:
            return f"{value / 1000:g}k"
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.6g}"


class _Axes:
    """Maps values to the drawing."""

    def __init__(self, chart: Chart) -> None:
        points = [point for line in chart.lines for point in line.points]
        self.is_logarithmic = chart.is_logarithmic and min(p.x for p in points) > 0
        xs = [self._along(point.x) for point in points]
        spreads = [point.deviation or 0.0 for point in points]
        ys = [p.y - d for p, d in zip(points, spreads, strict=True)] + [
            p.y + d for p, d in zip(points, spreads, strict=True)
        ]
        ys += chart.references.values()
        self.has_logarithmic_values = chart.has_logarithmic_values and min(ys) > 0
        ys = [self._up(y) for y in ys]
        self.values = sorted({point.x for point in points})
        self.x0, self.x1 = _widened(min(xs), max(xs), 0.04 if chart.is_logarithmic else 0.02)
        self.y0, self.y1 = _widened(min(ys), max(ys), 0.06)

    def _along(self, x: float) -> float:
        return math.log10(x) if self.is_logarithmic else x

    def _up(self, y: float) -> float:
        return math.log10(y) if self.has_logarithmic_values else y

    def x(self, value: float) -> float:
        return LEFT + (self._along(value) - self.x0) / (self.x1 - self.x0) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (self._up(value) - self.y0) / (self.y1 - self.y0) * (HEIGHT - TOP - BOTTOM)

    def x_ticks(self) -> list[float]:
        if not self.is_logarithmic:
            return nice_ticks(self.x0, self.x1)
        at = [self.x(value) for value in self.values]
        if all(b - a >= TICK_DISTANCE for a, b in itertools.pairwise(at)) and all(v == round(v) for v in self.values):
            return self.values  # numbers of calls: each has its own
        return log_ticks(10**self.x0, 10**self.x1)

    def y_ticks(self) -> list[float]:
        if not self.has_logarithmic_values:
            return nice_ticks(self.y0, self.y1)
        return log_ticks(10**self.y0, 10**self.y1)


def _widened(low: float, high: float, share: float) -> tuple[float, float]:
    if high - low < 1e-12:
        margin = abs(low) * 0.05 or 1.0
        return low - margin, high + margin
    return low - share * (high - low), high + share * (high - low)


def render(chart: Chart) -> str:
    """Draw a chart that has points as an ``svg`` element."""
    axes = _Axes(chart)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}">',
        f"<title>{escape(chart.title)} against {escape(chart.x_label)}</title>",
        *_frame(axes, chart),
        *_events(axes, chart),
        *(part for line in chart.lines for part in _line(axes, line)),
        *_references(axes, chart),
        "</svg>",
    ]
    return "".join(parts)


def _frame(axes: _Axes, chart: Chart) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for value in axes.y_ticks():
        y = axes.y(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>')
    for value in axes.x_ticks():
        x = axes.x(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick_text(value)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (LEFT + right) / 2
    parts.append(
        f'<text class="name" x="{middle:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    return parts


def _events(axes: _Axes, chart: Chart) -> list[str]:
    parts = []
    for name, value in chart.events.items():
        x = axes.x(value)
        if LEFT <= x <= WIDTH - RIGHT:
            line = f'<line class="reference" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            parts.append(f"<g>{line}<title>{escape(name)}</title></g>")
    return parts


def _references(axes: _Axes, chart: Chart) -> list[str]:
    parts = []
    for name, value in chart.references.items():
        y = axes.y(value)
        parts.append(f'<line class="reference" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        # Its name stands at the right above it, unless points lie there: then at the left, or else below.
        near = [axes.x(p.x) for line in chart.lines for p in line.points if abs(axes.y(p.y) - y) < NAME_SIZE[1]]
        is_left = any(x > WIDTH - NAME_SIZE[0] for x in near)
        is_below = is_left and any(x < LEFT + NAME_SIZE[0] for x in near)
        x, anchor = (LEFT + 4, "start") if is_left and not is_below else (WIDTH - RIGHT, "end")
        baseline = y + 13 if is_below else y - 4
        parts.append(f'<text class="tick" x="{x}" y="{baseline:.1f}" text-anchor="{anchor}">{escape(name)}</text>')
    return parts


def _line(axes: _Axes, line: Line) -> list[str]:
    if not line.points:
        return []
    at = [(axes.x(p.x), axes.y(p.y)) for p in line.points]
    parts = [f'<g class="c{line.color % NUM_COLORS}">']
    parts += _spread(axes, line)
    if len(at) > 1:
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in at)
        dash = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash % len(DASHES) else ""
        parts.append(f'<path class="line" d="{path}"{dash}/>')
    marks = zip(at, line.points, strict=True) if line.has_marks or len(at) == 1 else [(at[-1], line.points[-1])]
    for (x, y), point in marks:
        note = escape(f"{line.label}: {point.note}" if point.note else f"{line.label}: {point.y:.4g}")
        parts.append(_mark(x, y, line.dash, note))
    return [*parts, "</g>"]


def _spread(axes: _Axes, line: Line) -> list[str]:
    spread = [p for p in line.points if p.deviation]
    if not spread:
        return []
    if line.has_marks or len(spread) == 1:
        bars = (
            f'<line class="bar" x1="{axes.x(p.x):.1f}" x2="{axes.x(p.x):.1f}" y1="{axes.y(p.y - (p.deviation or 0)):.1f}" '
            f'y2="{axes.y(p.y + (p.deviation or 0)):.1f}"/>'
            for p in spread
        )
        return list(bars)
    upper = [f"{axes.x(p.x):.1f} {axes.y(p.y + (p.deviation or 0)):.1f}" for p in spread]
    lower = [f"{axes.x(p.x):.1f} {axes.y(p.y - (p.deviation or 0)):.1f}" for p in reversed(spread)]
    return [f'<path class="band" d="M{"L".join([*upper, *lower])}Z"/>']


def _mark(x: float, y: float, shape: int, note: str) -> str:
    """Draw a disc, a ring, a square or a diamond, so that lines differ without their colours."""
    title = f"<title>{note}</title>"
    if shape % len(DASHES) == 0:
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="3.6">{title}</circle>'
    if shape % len(DASHES) == 1:
        return f'<circle class="ring" cx="{x:.1f}" cy="{y:.1f}" r="3.4">{title}</circle>'
    turn = f' transform="rotate(45 {x:.1f} {y:.1f})"' if shape % len(DASHES) == 3 else ""
    return f'<rect class="mark" x="{x - 3.2:.1f}" y="{y - 3.2:.1f}" width="6.4" height="6.4"{turn}>{title}</rect>'


def legend(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return what explains the lines of several charts: a small drawing and a label for each kind of line."""
    found: dict[str, str] = {}
    for line in lines:
        dash = f' stroke-dasharray="{DASHES[line.dash % len(DASHES)]}"' if line.dash % len(DASHES) else ""
        found.setdefault(
            line.label,
            f'<svg class="key c{line.color % NUM_COLORS}" viewBox="0 0 30 12" aria-hidden="true">'
            f'<path class="line" d="M1 6L29 6"{dash}/>{_mark(15, 6, line.dash, escape(line.label))}</svg>',
        )
    return [(drawing, label) for label, drawing in found.items()]
