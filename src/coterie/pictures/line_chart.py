"""A line chart as a small SVG file, written by hand: no library, readable on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 360, 64, 150, 24, 40
COLOURS = ("#888888", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")

Points = Sequence[tuple[float, float]]


def line_chart(lines: Mapping[str, Points], x_title: str, y_title: str) -> str:
    """An SVG with one line per name, named at its right end. Each needs at least one point."""
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    frame = _Frame(min(xs), max(xs), min(ys), max(ys))
    parts = [*_axes(frame, x_title, y_title)]
    for name, colour, height in _labels(lines, frame):
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in lines[name])
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{height:.1f}" style="fill:{colour}">{escape(name)}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n' + "\n".join(parts) + "\n</svg>\n"


class _Frame:
    """From data to pixels."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.right = left, right if right > left else left + 1
        self.low, self.high = low, high if high > low else low + 1

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def _axes(frame: _Frame, x_title: str, y_title: str) -> list[str]:
    parts = []
    for y, text in _ticks(frame.low, frame.high):
        line = f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{frame.y(y):.1f}" y2="{frame.y(y):.1f}"'
        parts.append(f'{line} stroke="#888888" stroke-opacity="0.3"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{frame.y(y) + 4:.1f}" fill="#888888" text-anchor="end">{text}</text>')
    for x, text in _ticks(frame.left, frame.right):
        parts.append(
            f'<text x="{frame.x(x):.1f}" y="{HEIGHT - BOTTOM + 18}" fill="#888888" text-anchor="middle">{text}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" fill="#888888" text-anchor="middle">{escape(x_title)}</text>')
    parts.append(f'<text x="{LEFT + 6}" y="{TOP - 4}" fill="#888888">{escape(y_title)}</text>')
    return parts


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers between two ends, four to ten of them, as they are written."""
    rough = 10 ** math.floor(math.log10((high - low) / 4))
    step = max(rough * factor for factor in (1, 2, 5) if rough * factor <= (high - low) / 4)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [(at * step, f"{at * step:,.{places}f}") for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _labels(lines: Mapping[str, Points], frame: _Frame) -> list[tuple[str, str, float]]:
    """(name, colour, height of the label); labels that would overlap are pushed down."""
    named = [
        (name, COLOURS[at % len(COLOURS)], frame.y(points[-1][1]) + 4)
        for at, (name, points) in enumerate(lines.items())
    ]
    placed = sorted(named, key=lambda label: label[2])
    heights = [label[2] for label in placed]
    for at, _ in enumerate(pairwise(heights), start=1):
        heights[at] = max(heights[at], heights[at - 1] + 14)
    return [(name, colour, height) for (name, colour, _), height in zip(placed, heights, strict=True)]
