"""What a choice costs, read off the curves stored with a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from coterie.models.requests import RouteOptions

_NAMES = ("k", "p", "mean_experts")


def cost_of(curve: Sequence[Sequence[float]], value: float) -> tuple[float, bool] | None:
    """What ``value`` costs by points (value, cost), and whether it was measured there; None outside of them.

    Between two points the line through them is read.
    """
    points = sorted((float(x), float(y)) for x, y in curve)
    for x, y in points:
        if x == value:
            return y, True
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < value < x1:
            return y0 + (y1 - y0) * (value - x0) / (x1 - x0), False
    return None


def cost_text(curves: Mapping[str, Any], route: RouteOptions, usual: Mapping[str, Any]) -> str:
    """Such as "--k 4: 1.93 bits per byte against 1.81 with 8"; "" where no curve says.

    Args:
        curves: as `coterie.models.stored.Stored` has them.
        route: what is asked.
        usual: option -> what the model does unasked, where that is known.
    """
    measure = str(curves.get("measure", "loss"))
    told = [_one(name, curves[name], route.overrides[name], usual.get(name), measure)
            for name in _NAMES if name in curves and name in route.overrides]  # fmt: skip
    return "; ".join(text for text in told if text)


def _one(name: str, curve: Sequence[Sequence[float]], asked: float, usual: float | None, measure: str) -> str:
    cost = cost_of(curve, asked)
    if cost is None:
        return ""
    before = None if usual is None or usual == asked else cost_of(curve, usual)
    against = "" if before is None else f" against {before[0]:.2f} with {usual:g}"
    about = "" if cost[1] else "about "
    return f"--{name.replace('_', '-')} {asked:g}: {about}{cost[0]:.2f} {measure}{against}"
