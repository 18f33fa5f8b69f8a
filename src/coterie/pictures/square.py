"""A square matrix of values from -1 to 1 as SVG, rows and columns in a given order, with blocks along the diagonal."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

from torch import Tensor

from coterie.pictures.heatmap import STEPS

__all__ = ["square"]

_SIDE = 220.0


def square(title: str, values: Tensor, order: Sequence[int], blocks: Sequence[int]) -> str:
    """The matrix with a line around each block.

    All cells of one colour are one path, a dozen bytes each, since a layer of 256 experts has 65,536.

    Args:
        title: what it shows; also said on hover.
        values: [R, R]; -1 is the lowest colour, 0 the middle, 1 the highest.
        order: of rows and columns.
        blocks: how many rows in a row belong together; they sum to R.
    """
    count = len(order)
    index = list(order)
    steps = (STEPS + STEPS * values[index][:, index].float().clamp(-1, 1)).round().int().tolist()
    paths: dict[int, list[str]] = defaultdict(list)
    for row, line in enumerate(steps):
        begin = 0
        for column in range(1, count + 1):
            if column == count or line[column] != line[begin]:
                paths[line[begin]].append(f"M{begin} {row}h{column - begin}v1h-{column - begin}z")
                begin = column
    cells = "".join(f'<path class="c{step}" d="{"".join(each)}"/>' for step, each in sorted(paths.items()))
    edges, start = [], 0
    for size in blocks:
        edges.append(f'<rect x="{start}" y="{start}" width="{size}" height="{size}"/>')
        start += size
    outline = f'<g fill="none" stroke="var(--ink)" stroke-width="{count / _SIDE:.3f}">{"".join(edges)}</g>'
    return (
        f'<svg role="img" viewBox="0 0 {count} {count}" width="{_SIDE:.0f}" height="{_SIDE:.0f}">'
        f"<title>{escape(title)}</title>{cells}{outline}</svg>"
    )
