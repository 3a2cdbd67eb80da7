"""Scatter plots as SVG, in the colour of the surrounding text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hra_diffusion.comparison.html import render

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 52, WIDTH - 16, 14, HEIGHT - 42
"""Edges of the plot area."""


@dataclass(frozen=True)
class Point:
    """A labelled point with its standard errors (half the length of an error bar)."""

    label: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0


@dataclass(frozen=True)
class _Mark:
    """A point in pixels."""

    label: str
    filled: int
    x: float
    y: float
    x_bar: tuple[float, float]
    y_bar: tuple[float, float]
    label_x: float
    label_y: float
    anchor: str
    colour: str


def pareto_optimal(points: Sequence[Point], minimize_x: bool = False) -> list[bool]:
    """Return for each point whether no other point is at least as good in both coordinates and better in one.

    Larger values are better; with ``minimize_x`` smaller values of x are.
    """
    sign = -1 if minimize_x else 1
    values = [(sign * point.x, point.y) for point in points]
    return [not any(o[0] >= p[0] and o[1] >= p[1] and o != p for o in values) for p in values]


def scatter(points: Sequence[Point], x_name: str, y_name: str, minimize_x: bool = False) -> str:
    """Draw labelled points with error bars as an ``<svg>`` element; Pareto-optimal points are filled."""
    filled = pareto_optimal(points, minimize_x)
    return _draw(points, x_name, y_name, filled, ["currentColor"] * len(points))


def curves(series: Sequence[Sequence[Point]], x_name: str, y_name: str) -> str:
    """Draw series of labelled points, each joined by lines in a colour of its own, as an ``<svg>`` element."""
    colours = [f"hsl({round(360 * n / len(series)) + 210} 70% 50%)" for n in range(len(series))]
    points = [point for own in series for point in own]
    of_points = [colour for colour, own in zip(colours, series, strict=True) for _ in own]
    return _draw(points, x_name, y_name, [True] * len(points), of_points, dict(zip(colours, series, strict=True)))


def _draw(
    points: Sequence[Point], x_name: str, y_name: str, filled: Sequence[bool], colours: Sequence[str],
    lines: Mapping[str, Sequence[Point]] | None = None,
) -> str:  # fmt: skip
    """Draw points and, by colour, lines through points."""
    x_axis = _Axis.around([(p.x - p.x_error, p.x + p.x_error) for p in points], LEFT, RIGHT)
    y_axis = _Axis.around([(p.y - p.y_error, p.y + p.y_error) for p in points], BOTTOM, TOP)
    values = ", ".join(f"{p.label} {p.y:.2f} at {p.x:.3g}" for p in points)
    return render(
        "scatter.svg",
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=RIGHT,
        top=TOP,
        bottom=BOTTOM,
        description=f"{y_name} against {x_name}: {values}",
        x_name=x_name,
        y_name=y_name,
        x_ticks=[(x_axis.pixel(tick), tick_text(tick)) for tick in x_axis.ticks()],
        y_ticks=[(y_axis.pixel(tick), tick_text(tick)) for tick in y_axis.ticks()],
        lines={
            colour: " ".join(f"{x_axis.pixel(point.x)},{y_axis.pixel(point.y)}" for point in own)
            for colour, own in (lines or {}).items()
        },
        marks=_marks(points, x_axis, y_axis, filled, colours),
    )


def tick_text(value: float) -> str:
    """Return a tick's number, from ten thousand on in thousands or millions: "300k", "1.2M"."""
    size, suffix = (1e6, "M") if abs(value) >= 1e6 else (1e3, "k") if abs(value) >= 1e4 else (1, "")
    return f"{value / size:.4g}{suffix}"


@dataclass(frozen=True)
class _Axis:
    """A linear map from values (``low`` to ``high``) to pixels (``start`` to ``end``)."""

    low: float
    high: float
    start: float
    end: float

    @classmethod
    def around(cls, spans: Sequence[tuple[float, float]], start: float, end: float) -> "_Axis":
        """Return an axis that covers all spans with a margin."""
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - margin, high + margin, start, end)

    def pixel(self, value: float) -> float:
        return round(self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        """Return three to six round numbers."""
        power = 10 ** math.floor(math.log10((self.high - self.low) / 3))
        step = next(power * n for n in (5, 2, 1) if (self.high - self.low) / (power * n) >= 3)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _marks(
    points: Sequence[Point], x_axis: _Axis, y_axis: _Axis, filled: Sequence[bool], colours: Sequence[str]
) -> list[_Mark]:
    marks = []
    labelled = iter(_spread_labels([y_axis.pixel(point.y) for point in points if point.label]))
    heights = [next(labelled) if point.label else 0.0 for point in points]
    for point, full, height, colour in zip(points, filled, heights, colours, strict=True):
        x = x_axis.pixel(point.x)
        offset, anchor = (-10, "end") if x > (LEFT + WIDTH) / 2 else (10, "start")
        x_bar = x_axis.pixel(point.x - point.x_error), x_axis.pixel(point.x + point.x_error)
        y_bar = y_axis.pixel(point.y - point.y_error), y_axis.pixel(point.y + point.y_error)
        marks.append(
            _Mark(
                point.label, int(full), x, y_axis.pixel(point.y), x_bar, y_bar, x + offset, height - 7, anchor, colour
            )
        )
    return marks


def _spread_labels(heights: Sequence[float], gap: float = 14) -> list[float]:
    """Move labels down just enough that none covers another."""
    placed, last = list(heights), -math.inf
    for index in sorted(range(len(heights)), key=lambda i: heights[i]):
        last = placed[index] = max(heights[index], last + gap)
    return placed
