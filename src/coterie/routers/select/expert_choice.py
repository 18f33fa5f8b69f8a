"""The other way round: every expert takes its best items."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coterie.ops.capacity import best_items
from coterie.ops.select import check_k
from coterie.routers.base import Scope, Scores, Select
from coterie.routers.limits import asked_k
from coterie.routing import RouteContext


class ExpertChoice(Select):
    """Each route takes the items of highest probability, ``k * T / R`` of them (expert choice, arXiv 2202.09368).

    Loads are equal by construction; an item may have every route, or none. What an item gets depends on all others,
    later ones included: not causal, so a language model that decodes refuses it, while encoders and images are its
    place. Masked items are not counted and never taken.

    Args:
        k: routes per item on average, the paper's capacity factor; ``RouteContext.overrides["k"]`` replaces it.
        num_routes: R.

    Raises:
        OptionError: ``k`` is not in 1..R.
    """

    causal = False
    variable_k = True
    scope: Scope = "batch"

    def __init__(self, k: int, num_routes: int) -> None:
        super().__init__()
        check_k(k, num_routes)
        self.k, self.num_routes = k, num_routes

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        real = len(scores.probs) if scores.allowed is None else int(scores.allowed.any(1).sum())
        count = math.ceil(asked_k(self.k, self.num_routes, ctx) * real / self.num_routes)
        order = by_place(ctx, len(scores.probs))
        if order is None:
            return best_items(scores.probs, count, scores.allowed)
        allowed = None if scores.allowed is None else scores.allowed[order]
        chosen = best_items(scores.probs[order], count, allowed)
        return torch.empty_like(chosen).index_copy_(0, order, chosen)


def by_place(ctx: RouteContext, num_items: int) -> Tensor | None:
    """[T] int64: rows in order of position, then sequence; None where the context does not know them.

    Items compete in this order, so that shuffling them changes nothing.
    """
    position, sequence = ctx.position, ctx.sequence
    if position is None or sequence is None or len(position) != num_items or len(sequence) != num_items:
        return None
    order = torch.sort(sequence, stable=True).indices
    return order[torch.sort(position[order], stable=True).indices]
