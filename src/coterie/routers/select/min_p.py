"""Every route that is not far behind the best one."""

from __future__ import annotations

from torch import Tensor

from coterie.ops.threshold import min_p, min_p_entries
from coterie.routers.select.threshold import Threshold


class MinP(Threshold):
    """The routes with at least ``ratio`` times the probability of the item's best one.

    Args:
        ratio: 0 (all) to 1 (the best one and its equals).
        num_routes: R.
        k_max: routes an item may have at most; ``Routing.extra["truncated"]`` is the share of items that it cut.

    Raises:
        OptionError: ``ratio`` is not in 0..1, or ``k_max`` not in 1..R.
    """

    name, rising = "ratio", False

    def __init__(self, ratio: float, num_routes: int, *, k_max: int | None = None) -> None:
        super().__init__(ratio, num_routes, k_max=k_max)

    def rule(self, probs: Tensor, value: float, k_max: int | None, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """`coterie.ops.min_p`."""
        return min_p(probs, value, k_max=k_max, allowed=allowed)

    def entries(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """`coterie.ops.min_p_entries`."""
        return min_p_entries(probs)
