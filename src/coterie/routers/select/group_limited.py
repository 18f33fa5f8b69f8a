"""The k best routes, all from the best groups."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.ops.select import check_groups, group_limited_top_k
from coterie.routers.base import Scores, Select
from coterie.routers.limits import asked_k
from coterie.routing import RouteContext


class GroupLimited(Select):
    """DeepSeek's rule: keep the best groups of routes, take the ``k`` best inside (arXiv 2412.19437, 2.1.2).

    Args:
        k: choices per item; ``RouteContext.overrides["k"]`` replaces it for a call.
        num_routes: R, a multiple of ``num_groups``.
        keep_groups: groups an item may choose from.
        best: how many of a group's best probabilities add up to its score (V3: 2, V2: 1).
        corrected: choose groups and routes by ``probs + correction``, as in `TopK`.

    Raises:
        OptionError: the groups do not divide R, or hold fewer than ``k`` routes.
    """

    correction: Tensor | None

    def __init__(
        self, k: int, num_routes: int, *, num_groups: int, keep_groups: int, best: int = 2, corrected: bool = True
    ) -> None:
        super().__init__()
        check_groups(num_routes, k, num_groups, keep_groups)
        self.k, self.most = k, keep_groups * (num_routes // num_groups)
        self.num_groups, self.keep_groups, self.best = num_groups, keep_groups, best
        self.register_buffer("correction", torch.zeros(num_routes) if corrected else None)

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        table = scores.probs if self.correction is None else scores.probs + self.correction
        return group_limited_top_k(
            table, asked_k(self.k, self.most, ctx),
            num_groups=self.num_groups, keep_groups=self.keep_groups, best=self.best, allowed=scores.allowed,
        )  # fmt: skip
