"""As many routes as have a share of the probability together."""

from __future__ import annotations

from torch import Tensor

from coterie.ops.threshold import top_p, top_p_entries
from coterie.routers.select.threshold import Threshold


class TopP(Threshold):
    """The fewest best routes whose probabilities reach ``p`` (Harder Tasks Need More Experts, arXiv 2403.07652).

    Probabilities are those of the weigh part, divided by their sum; an undecided item takes more routes than a
    sure one.

    Args:
        p: 0 (one route) to 1 (all).
        num_routes: R.
        strict: the sum must pass ``p``, as in the authors' code; otherwise it must reach it, as in the paper.
        k_max: routes an item may have at most; ``Routing.extra["truncated"]`` is the share of items that it cut.

    Raises:
        OptionError: ``p`` is not in 0..1, or ``k_max`` not in 1..R.
    """

    name, rising = "p", True

    def __init__(self, p: float, num_routes: int, *, strict: bool = False, k_max: int | None = None) -> None:
        super().__init__(p, num_routes, k_max=k_max)
        self.strict = strict

    def rule(self, probs: Tensor, value: float, k_max: int | None, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
        """`coterie.ops.top_p`."""
        return top_p(probs, value, strict=self.strict, k_max=k_max, allowed=allowed)

    def entries(self, probs: Tensor) -> tuple[Tensor, Tensor]:
        """`coterie.ops.top_p_entries`."""
        return top_p_entries(probs)
