"""A heat map of layers by experts as SVG: colours by class, values on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from torch import Tensor

from coterie.jobs.usage_style import LIGHT

# steps of the colour scale on each side of the middle, and the ratio that the last of them begins to mean
STEPS, TOP = len(LIGHT) // 2, 4.0
_LEFT, _ABOVE, _BELOW, _WIDTH = 44, 22, 8, 980


def step_of(ratio: float) -> int:
    """Colour of a load over what is expected: `STEPS` in the middle, 0 at 1/`TOP` and below, the last at `TOP`."""
    if ratio <= 0:
        return 0
    return STEPS + max(-STEPS, min(STEPS, round(STEPS * math.log(ratio) / math.log(TOP))))


def heatmap(title: str, layers: Sequence[int], rows: Sequence[Tensor], hover: str) -> str:
    """Layers below each other, experts side by side.

    Args:
        title: what it shows, for those who cannot see it.
        layers: number of each row.
        rows: ratios [E] of each layer, 1 in the middle of the scale; layers may differ in E.
        hover: with ``{layer}``, ``{expert}`` and ``{ratio}``.
    """
    most = max(len(row) for row in rows)
    wide = min(56.0, max(1.5, (_WIDTH - _LEFT) / most))
    tall = min(26.0, max(7.0, 560 / len(rows)))
    gap = 1.0 if wide >= 5 else 0.0
    width, height = _LEFT + wide * most + 2, _ABOVE + tall * len(rows) + _BELOW
    parts = [
        f'<svg role="img" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">',
        f"<title>{escape(title)}</title>", *_column_labels(most, wide),
    ]  # fmt: skip
    for number, (layer, row) in enumerate(zip(layers, rows, strict=True)):
        y = _ABOVE + number * tall
        if number % max(1, math.ceil(13 / tall)) == 0:
            parts.append(f'<text x="{_LEFT - 8}" y="{y + tall / 2 + 4:.1f}" text-anchor="end">{layer}</text>')
        for expert, ratio in enumerate(row.tolist()):
            text = hover.format(layer=layer, expert=expert, ratio=format_ratio(ratio))
            parts.append(_cell(_LEFT + expert * wide, y, wide - gap, tall - 1, ratio, text))
    return "".join([*parts, "</svg>"])


def format_ratio(ratio: float) -> str:
    """A ratio for people."""
    return "never used" if ratio == 0 else f"{ratio:.2f} times"


def _cell(x: float, y: float, wide: float, tall: float, ratio: float, text: str) -> str:
    kind = "never" if ratio == 0 else f"c{step_of(ratio)}"
    inset = 0.5 if ratio == 0 else 0.0
    return (
        f'<rect class="h {kind}" x="{x + inset:.1f}" y="{y + inset:.1f}" width="{wide - 2 * inset:.1f}" '
        f'height="{tall - 2 * inset:.1f}"><title>{escape(text)}</title></rect>'
    )


def _column_labels(most: int, wide: float) -> list[str]:
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if step * wide >= 26)
    return [
        f'<text x="{_LEFT + (expert + 0.5) * wide:.1f}" y="{_ABOVE - 7}" text-anchor="middle">{expert}</text>'
        for expert in range(0, most, step)
    ]


def legend(low: str, middle: str, high: str) -> str:
    """The colour scale with its ends and middle named."""
    cells = "".join(
        f'<rect class="c{step}" x="{step * 26}" y="0" width="25" height="12"></rect>' for step in range(2 * STEPS + 1)
    )
    total = (2 * STEPS + 1) * 26
    texts = (
        f'<text x="0" y="26">{escape(low)}</text>'
        f'<text x="{total / 2:.0f}" y="26" text-anchor="middle">{escape(middle)}</text>'
        f'<text x="{total}" y="26" text-anchor="end">{escape(high)}</text>'
        f'<rect class="never" x="{total + 18.5}" y="0.5" width="24" height="11"></rect>'
        f'<text x="{total + 50}" y="10">never used</text>'
    )
    label = escape(f"Colours from {low} over {middle} to {high}")
    return (
        f'<svg role="img" viewBox="0 0 {total + 120} 30" width="{total + 120}" height="30"><title>{label}</title>'
        f"{cells}{texts}</svg>"
    )


def histogram(relative: Tensor, title: str) -> str:
    """Loads over the mean load, largest first, with a dashed line at the mean."""
    ordered = relative.sort(descending=True).values.tolist()
    width, height = 168.0, 30.0
    top, wide = max(2.0, *ordered), width / len(ordered)
    bars = "".join(
        f'<rect class="bar" x="{number * wide:.2f}" y="{height * (1 - value / top):.1f}" '
        f'width="{max(0.4, wide - (0.8 if wide > 3 else 0)):.2f}" height="{height * value / top:.1f}"></rect>'
        for number, value in enumerate(ordered)
    )
    line = height * (1 - 1 / top)
    return (
        f'<svg role="img" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}">'
        f"<title>{escape(title)}</title>{bars}"
        f'<line class="fair" x1="0" x2="{width:.0f}" y1="{line:.1f}" y2="{line:.1f}"></line></svg>'
    )
