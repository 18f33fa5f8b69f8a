"""A selection that leaves no item without a true expert."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.select import top_k
from coterie.routers.base import Scores, Select
from coterie.routers.select.top_k import correction_of
from coterie.routing import RouteContext


class AtLeastTrue(Select):
    """What ``inner`` chooses; where all of it is null, the last null makes place for the best true route.

    The number of choices stays as it was, and so does an item that chose nothing at all.

    Args:
        inner: any selection over true and null routes.
        num_true: N; routes N and above are null.

    Raises:
        OptionError: there is no true route.
    """

    def __init__(self, inner: Select, num_true: int) -> None:
        super().__init__()
        if num_true < 1:
            raise OptionError(f"num_true={num_true} is not allowed: at least one route leads to an expert.")
        self.inner, self.num_true = inner, num_true
        self.causal, self.variable_k = inner.causal, inner.variable_k
        self.stochastic, self.scope = inner.stochastic, inner.scope

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        return self.choose(scores, ctx)[0]

    def choose(self, scores: Scores, ctx: RouteContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen, extra = self.inner.choose(scores, ctx)
        return self._mended(chosen, scores), extra

    def _mended(self, chosen: Tensor, scores: Scores) -> Tensor:
        num_routes = scores.logits.shape[1]
        taken = chosen < num_routes
        only_nulls = taken.any(1) & (chosen >= self.num_true).all(1)
        allowed = None if scores.allowed is None else scores.allowed[:, : self.num_true]
        correction = correction_of(self.inner)
        table = scores.logits if correction is None else scores.probs + correction
        best = top_k(table[:, : self.num_true], 1, allowed)
        mend = only_nulls[:, None] & (best < self.num_true)
        last = taken.sum(1, keepdim=True) - 1  # empty places come last
        return chosen.scatter(1, last.clamp(min=0), best.where(mend, chosen.gather(1, last.clamp(min=0))))
