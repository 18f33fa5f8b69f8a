"""A heat map of layers by experts as SVG: colours by class, values on hover."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from torch import Tensor

from coterie.pictures.style import LIGHT

# steps of the colour scale on each side of the middle, and the ratio that the last of them begins to mean
STEPS, TOP = len(LIGHT) // 2, 4.0
_LEFT, _ABOVE, _BELOW, _WIDTH = 44, 22, 8, 980


def step_of(ratio: float) -> int:
    """Colour of a load over what is expected: `STEPS` in the middle, 0 at 1/`TOP` and below, the last at `TOP`."""
    if ratio <= 0:
        return 0
    return STEPS + max(-STEPS, min(STEPS, round(STEPS * math.log(ratio) / math.log(TOP))))


def heatmap(title: str, layers: Sequence[int], rows: Sequence[Tensor]) -> str:
    """Layers below each other, experts side by side; each cell tells its ratio on hover.

    A cell is a few dozen bytes, since a large model has tens of thousands: its size is in a style sheet of the
    drawing's own, its row in a group.

    Args:
        title: what it shows, for those who cannot see it.
        layers: number of each row.
        rows: ratios [E] of each layer, 1 in the middle of the scale; layers may differ in E.
    """
    most = max(len(row) for row in rows)
    wide = min(56.0, max(1.5, (_WIDTH - _LEFT) / most))
    tall = min(26.0, max(7.0, 560 / len(rows)))
    width, height = _LEFT + wide * most + 2, _ABOVE + tall * len(rows) + _BELOW
    name = f"m{round(wide * 100)}-{round(tall * 100)}"
    parts = [
        f'<svg role="img" class="{name}" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}">',
        f"<title>{escape(title)}</title>",
        f"<style>.{name} rect{{width:{wide - (1 if wide >= 5 else 0):.2f}px;height:{tall - 1:.2f}px}}</style>",
        *_column_labels(most, wide),
    ]
    for number, (layer, row) in enumerate(zip(layers, rows, strict=True)):
        parts.append(f'<g transform="translate({_LEFT} {_ABOVE + number * tall:.1f})">')
        if number % max(1, math.ceil(13 / tall)) == 0:
            parts.append(f'<text x="-8" y="{tall / 2 + 4:.1f}" text-anchor="end">{layer}</text>')
        parts += [_cell(layer, expert, expert * wide, ratio) for expert, ratio in enumerate(row.tolist())]
        parts.append("</g>")
    return "".join([*parts, "</svg>"])


def _cell(layer: int, expert: int, x: float, ratio: float) -> str:
    kind = "never" if ratio == 0 else f"c{step_of(ratio)}"
    value = "never used" if ratio == 0 else f"{ratio:.2f}×"
    return f'<rect class="{kind}" x="{x:.1f}"><title>layer {layer}, expert {expert}: {value}</title></rect>'


def _column_labels(most: int, wide: float) -> list[str]:
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if step * wide >= 34)
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
