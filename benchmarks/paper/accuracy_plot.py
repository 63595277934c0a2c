"""A plot of the accuracy study as SVG: the AP of every run over the GFLOPs of its encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.paper.accuracy_statistics import Interval

_WIDTH, _HEIGHT = 420, 320  # of one panel, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 20, 40, 50
_COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")
_TICKS = 4
_MARGIN = 0.15  # of the range of the values, on either side


@dataclass(frozen=True)
class Point:
    """One arm on one set."""

    letter: str
    gflops: float
    values: Sequence[float]  # AP of each seed
    mean: Interval


@dataclass(frozen=True)
class Panel:
    """One set."""

    title: str
    points: Sequence[Point]


def draw(panels: Sequence[Panel]) -> str:
    """The panels side by side, as an SVG document."""
    drawn = [
        f'<g transform="translate({number * _WIDTH} 0)">{_draw_panel(panel)}</g>'
        for number, panel in enumerate(panels)
    ]
    width = _WIDTH * max(len(panels), 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" '
        f'viewBox="0 0 {width} {_HEIGHT}" font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{_HEIGHT}" fill="white"/>{"".join(drawn)}</svg>\n'
    )


class _Axis:
    """Maps values to pixels."""

    def __init__(self, values: Sequence[float], first: float, last: float) -> None:
        low, high = min(values), max(values)
        spare = (high - low) * _MARGIN or abs(high) * _MARGIN or 1.0
        self.low, self.high = low - spare, high + spare
        self._first, self._last = first, last

    def place(self, value: float) -> float:
        """The pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self._first + share * (self._last - self._first)

    def ticks(self) -> list[float]:
        """Values to mark."""
        step = (self.high - self.low) / (_TICKS + 1)
        return [self.low + step * number for number in range(1, _TICKS + 1)]


def _draw_panel(panel: Panel) -> str:
    title = _text(_WIDTH / 2, 20, panel.title, "middle", "bold")
    if not panel.points:
        return title + _text(_WIDTH / 2, _HEIGHT / 2, "no run is done", "middle")
    heights = [value for point in panel.points for value in _values(point)]
    x = _Axis([point.gflops for point in panel.points], _LEFT, _WIDTH - _RIGHT)
    y = _Axis(heights, _HEIGHT - _BOTTOM, _TOP)
    parts = [title, _draw_axes(x, y)]
    parts += [_draw_point(point, x, y) for point in panel.points]
    return "".join(parts)


def _values(point: Point) -> list[float]:
    """Everything of a point that has to fit."""
    ends = [end for end in (point.mean.low, point.mean.high) if end is not None]
    return [*point.values, *ends]


def _draw_axes(x: _Axis, y: _Axis) -> str:
    left, right, bottom, top = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM, _TOP
    parts = [f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>']
    for value in y.ticks():
        at = y.place(value)
        parts.append(f'<path d="M{left} {at:.1f}H{right}" stroke="#ddd"/>')
        parts.append(_text(left - 6, at + 4, f"{value:.3f}", "end"))
    for value in x.ticks():
        parts.append(_text(x.place(value), bottom + 18, f"{value:.2f}", "middle"))
    parts.append(_text((left + right) / 2, bottom + 38, "encoder GFLOPs", "middle"))
    parts.append(_text(left, top - 6, "AP", "middle"))
    return "".join(parts)


def _draw_point(point: Point, x: _Axis, y: _Axis) -> str:
    colour = _COLOURS[(ord(point.letter) - ord("a")) % len(_COLOURS)]
    at, mean = x.place(point.gflops), y.place(point.mean.mean)
    parts = [
        f'<circle cx="{at - 8:.1f}" cy="{y.place(value):.1f}" r="2.5" fill="none" '
        f'stroke="{colour}"/>'
        for value in point.values
    ]
    if point.mean.low is not None and point.mean.high is not None:
        low, high = y.place(point.mean.low), y.place(point.mean.high)
        bar = f'd="M{at:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="2"'
        parts.append(f"<path {bar}/>")
    parts.append(f'<circle cx="{at:.1f}" cy="{mean:.1f}" r="4" fill="{colour}"/>')
    parts.append(_text(at + 8, mean + 4, f"({point.letter})", "start"))
    return "".join(parts)


def _text(x: float, y: float, words: str, anchor: str, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )
