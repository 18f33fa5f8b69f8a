"""A limit to how many items a route may have, around any selection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.capacity import check_factor, places_per_route, within_capacity
from coterie.routers.base import Scope, Scores, Select
from coterie.routers.select.expert_choice import by_place
from coterie.routers.weigh.activations import read_at
from coterie.routing import RouteContext

Order = Literal["probability", "position"]


class Capacity(Select):
    """What ``select`` chooses, except where a route has no place left: those choices are dropped.

    A route has ``factor`` times as many places as if all routes were chosen equally often, rounded up: for top-k
    ``factor * T * k / R``. ``Routing.extra["dropped"]`` is the share of choices that found none (Switch Transformer,
    arXiv 2101.03961, section 2.2). Weights are computed of what is left, so renormalised ones still sum to one.

    In training only, unless ``eval_factor`` is given: outside training an item would otherwise depend on its company.
    The declared facts are those outside training.

    Args:
        select: the selection.
        factor: of the places in training; None: no limit there.
        eval_factor: the same outside training.
        order: who goes first: the higher ``probability``, or the earlier ``position`` in its sequence.
        unlimited: routes that need no place, such as nulls.

    Raises:
        OptionError: a factor is not above 0, there is none, or the order is not known.
    """

    def __init__(
        self,
        select: Select,
        factor: float | None,
        *,
        eval_factor: float | None = None,
        order: Order = "probability",
        unlimited: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        for what, value in (("capacity", factor), ("eval_capacity", eval_factor)):
            if value is not None:
                check_factor(what, value)
        if factor is None and eval_factor is None:
            raise OptionError("a capacity without a factor limits nothing: give one, such as 1.25, or leave it out.")
        if order not in get_args(Order):
            raise OptionError(f"order={order!r} is not allowed: write 'probability' or 'position'.")
        self.select, self.factor, self.eval_factor = select, factor, eval_factor
        self.order, self.unlimited = order, unlimited
        limited = eval_factor is not None
        self.causal, self.variable_k = select.causal and not limited, select.variable_k or limited
        self.carries, self.stochastic = select.carries, select.stochastic
        self.scope: Scope = "batch" if limited else select.scope

    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        return self.choose(scores, ctx)[0]

    def choose(self, scores: Scores, ctx: RouteContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        """``dropped``, [] float32, beside what the selection reports; a bound selection keeps its own numbers."""
        chosen, extra = self.select.choose(scores, ctx)
        factor = self.factor if ctx.training else self.eval_factor
        if factor is None:
            return chosen, extra
        num_routes = scores.probs.shape[1]
        kept = self._kept(chosen, scores.probs, factor, by_place(ctx, len(chosen)))
        taken = chosen < num_routes
        dropped = (taken & ~kept).sum() / taken.sum().clamp(min=1)
        return _closed_up(chosen.masked_fill(~kept, num_routes), num_routes), {**extra, "dropped": dropped}

    def _kept(self, chosen: Tensor, probs: Tensor, factor: float, order: Tensor | None) -> Tensor:
        num_routes = probs.shape[1]
        places = places_per_route(chosen, factor, num_routes).repeat(num_routes)
        places[list(self.unlimited)] = chosen.numel()
        priority = read_at(probs, chosen)[0] if self.order == "probability" else None
        if order is None:
            return within_capacity(chosen, priority, places, num_routes)
        sorted_priority = None if priority is None else priority[order]
        kept = within_capacity(chosen[order], sorted_priority, places, num_routes)
        return torch.empty_like(kept).index_copy_(0, order, kept)


def _closed_up(chosen: Tensor, num_routes: int) -> Tensor:
    """Empty places last, the others in their order."""
    empty = (chosen == num_routes).to(torch.uint8)
    return chosen.gather(1, torch.sort(empty, dim=1, stable=True).indices)
