"""The weigh part that a family's way of weighing stands for."""

from __future__ import annotations

from typing import Literal

from coterie.routers.base import Weigh
from coterie.routers.weigh import Raw, Selected


def weighing(activation: Literal["softmax", "sigmoid"], renormalise: bool, scale: float, rounded: bool) -> Weigh:
    """Softmax after the selection where that is the same as before and renormalised, since it has no 0/0."""
    if activation == "softmax" and renormalise:
        return Selected(rounded=rounded, scale=scale)
    return Raw(activation, renormalise=renormalise, eps=1e-20, scale=scale, rounded=rounded)
