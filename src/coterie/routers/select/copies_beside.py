"""A selection in which a null that repeats an expert's row stands beside that expert."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from coterie.routers.base import Scores, Select
from coterie.routing import RouteContext


class CopiesBeside(Select):
    """What ``inner`` chooses if routes are ordered 0, its copies, 1, its copies...: equal scores go in that order.

    Selections give equal scores to the lower route, and a copied row ties with its expert on every item. In the order
    of the routes two *experts* of equal logit would both come before the copies of either, and an item would have one
    expert more than before the nulls came. Route ids that go in and come out are the usual ones.

    Args:
        inner: any selection that treats all routes alike.
        num_true: N; null N + j repeats route j modulo N.
        num_nulls: M.
    """

    def __init__(self, inner: Select, num_true: int, num_nulls: int) -> None:
        super().__init__()
        self.inner, self.num_routes = inner, num_true + num_nulls
        routes = sorted(range(self.num_routes), key=lambda route: (route % num_true, route))
        self.order = (*routes, self.num_routes)  # the last is the empty place
        self.causal, self.variable_k = inner.causal, inner.variable_k
        self.stochastic, self.scope = inner.stochastic, inner.scope

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        return self.choose(scores, ctx)[0]

    def choose(self, scores: Scores, ctx: RouteContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        back = torch.tensor(self.order, device=scores.logits.device)
        order = back[:-1]
        allowed = None if scores.allowed is None else scores.allowed[:, order]
        chosen, extra = self.inner.choose(Scores(scores.logits[:, order], scores.probs[:, order], allowed), ctx)
        return back[chosen], extra
