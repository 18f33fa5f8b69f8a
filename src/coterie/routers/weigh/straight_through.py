"""Forward nothing but the choice, backward the score: the weight is one and has the gradient of what chose."""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from coterie.errors import OptionError
from coterie.routers.base import Scores, Weigh
from coterie.routers.weigh.activations import read_at, softmax, wide

Of = Literal["softmax", "selected"]


class StraightThrough(Weigh):
    """Weight exactly 1 for every chosen route; the gradient is that of a score of the route.

    Experts run at full strength, so the answer does not depend on how sure the router is, and the router learns all
    the same (AdvMoE, arXiv 2308.10110). The weight is ``score - stop_gradient(score) + 1``.

    Args:
        of: ``softmax``: the gradient of the route's probability among all, which raises one route and lowers the
            others. ``selected``: of its logit alone, the others get exactly 0, as in the authors' release.

    Raises:
        OptionError: ``of`` is unknown.
    """

    def __init__(self, of: Of = "softmax") -> None:
        super().__init__()
        if of not in get_args(Of):
            raise OptionError(f"of={of!r} is not known; there are: {', '.join(get_args(Of))}.")
        self.of = of

    def probs(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """Softmax over all allowed routes."""
        return softmax(logits, allowed)

    def forward(self, scores: Scores, chosen: Tensor) -> Tensor:
        score, taken = read_at(scores.probs if self.of == "softmax" else wide(scores.logits), chosen)
        score = score.masked_fill(~taken, 0)
        return score - score.detach() + 1
