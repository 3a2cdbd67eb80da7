"""Scatter plots as SVG, in the colour of the text around them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 14, 42


@dataclass(frozen=True)
class Point:
    """A labelled point with its errors (half the length of a bar)."""

    label: str
    x: float
    y: float
    x_error: float = 0.0
    y_error: float = 0.0


def unbeaten(points: Sequence[Point], less: bool = False) -> list[bool]:
    """Whether no other point is at least as good in both directions and better in one: Pareto's front.

    Higher is better, and further right; further left where ``less`` is.
    """
    sign = -1 if less else 1
    places = [(sign * point.x, point.y) for point in points]
    return [not any(o[0] >= p[0] and o[1] >= p[1] and o != p for o in places) for p in places]


def scatter(points: Sequence[Point], x_name: str, y_name: str, less: bool = False) -> str:
    """The points with their labels; full ones are unbeaten, hollow ones are not (see ``unbeaten``)."""
    across = _Axis.of([(p.x - p.x_error, p.x + p.x_error) for p in points], LEFT, WIDTH - RIGHT)
    up = _Axis.of([(p.y - p.y_error, p.y + p.y_error) for p in points], HEIGHT - BOTTOM, TOP)
    marks = [_frame(across, up, x_name, y_name)]
    heights = _apart([up.place(point.y) for point in points])
    for point, best, height in zip(points, unbeaten(points, less), heights, strict=True):
        x, y = across.place(point.x), up.place(point.y)
        ends = [across.place(point.x + s * point.x_error) for s in (-1, 1)]
        tips = [up.place(point.y + s * point.y_error) for s in (-1, 1)]
        side, anchor = (-10, "end") if x > (LEFT + WIDTH) / 2 else (10, "start")
        marks.append(
            f'<path d="M{ends[0]:.1f} {y:.1f}H{ends[1]:.1f}M{x:.1f} {tips[0]:.1f}V{tips[1]:.1f}" stroke-opacity=".45"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill-opacity="{int(best)}"/>'
            f'<text x="{x + side:.1f}" y="{height - 7:.1f}" text-anchor="{anchor}" stroke="none" '
            f'font-weight="600">{escape(point.label)}</text>'
        )
    about = escape(f"{y_name} against {x_name}: " + ", ".join(f"{p.label} {p.y:.2f} at {p.x:.3g}" for p in points))
    return (
        f'<svg class="scatter" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{about}" stroke="currentColor" '
        f'fill="currentColor" font-size="12" style="max-width:{WIDTH}px;width:100%">{"".join(marks)}</svg>'
    )


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, spans: Sequence[tuple[float, float]], start: float, end: float) -> "_Axis":
        """An axis that holds all spans with some room."""
        low, high = min(span[0] for span in spans), max(span[1] for span in spans)
        room = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        return cls(low - room, high + room, start, end)

    def place(self, value: float) -> float:
        return self.start + (self.end - self.start) * (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Three to six round numbers."""
        power = 10 ** math.floor(math.log10((self.high - self.low) / 3))
        step = next(power * n for n in (5, 2, 1) if (self.high - self.low) / (power * n) >= 3)
        return [n * step for n in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _frame(across: _Axis, up: _Axis, x_name: str, y_name: str) -> str:
    lines = "".join(
        f'<path d="M{across.place(t):.1f} {TOP}V{HEIGHT - BOTTOM}" stroke-opacity=".12"/>'
        f'<text x="{across.place(t):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle" stroke="none">{t:.4g}</text>'
        for t in across.ticks()
    ) + "".join(
        f'<path d="M{LEFT} {up.place(t):.1f}H{WIDTH - RIGHT}" stroke-opacity=".12"/>'
        f'<text x="{LEFT - 6}" y="{up.place(t) + 4:.1f}" text-anchor="end" stroke="none">{t:.4g}</text>'
        for t in up.ticks()
    )
    names = (
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}" text-anchor="middle" stroke="none">{x_name}</text>'
        f'<text transform="translate(13 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle" '
        f'stroke="none">{y_name}</text>'
    )
    return lines + names


def _apart(heights: Sequence[float], gap: float = 14) -> list[float]:
    """Heights of labels moved down just so far that none covers another."""
    placed, last = list(heights), -math.inf
    for number in sorted(range(len(heights)), key=lambda n: heights[n]):
        last = placed[number] = max(heights[number], last + gap)
    return placed
