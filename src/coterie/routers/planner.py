"""Deciding for many sites at once, and following what was decided.

A `Planner` writes a `RoutePlan` before the layers run (a pre-gate, an image router, an oracle);
a `FromPlan` stands in each layer's router and reads its site. A recorded plan replays the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from coterie.errors import RoutingError
from coterie.routers.base import Scope
from coterie.routing import RouteContext, RoutePlan, Routing


class Planner(nn.Module, ABC):
    """Decides the routing of many sites from one input. A subclass is final and defines `plan`."""

    @abstractmethod
    def plan(self, x: Tensor, ctx: RouteContext) -> RoutePlan:
        """A `Routing` of the T items of ``x [T, D]`` for each site, respecting the limits of ``ctx``."""


class FromPlan(nn.Module):
    """Follows ``ctx.plan[ctx.site]``, weights and all; looks at nothing but the number of items.

    Items are matched by (sequence, position) where plan and context both know them, so a plan of
    whole sequences serves one token at a time; otherwise plan and input must have the same T items
    in the same order. Masked items get nothing, whether the plan has them or not. Bias, allowed and
    overrides were the planner's to respect.

    Args:
        num_experts: E of the site.
        causal, variable_k, stochastic, scope: facts of the planner that is followed.
    """

    learned = False
    carries = False

    def __init__(
        self,
        num_experts: int,
        *,
        causal: bool = True,
        variable_k: bool = True,
        stochastic: bool = False,
        scope: Scope = "token",
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.causal, self.variable_k, self.stochastic, self.scope = causal, variable_k, stochastic, scope

    def forward(self, x: Tensor, ctx: RouteContext | None = None) -> Routing:
        """The planned routing of ``x [T, D]``, gradient included where the plan has any.

        Raises:
            RoutingError: there is no plan, it lacks the site or an item, or has other experts.
        """
        if ctx is None or ctx.plan is None:
            raise RoutingError("this layer follows a plan and got none: give RouteContext.plan.")
        planned = ctx.plan[ctx.site]
        if planned.num_experts != self.num_experts:
            raise RoutingError(f"the plan has {planned.num_experts} experts at {ctx.site!r}, not {self.num_experts}.")
        index = _places(ctx.plan, ctx)
        routing = planned if index is None else planned.expand(index)
        if routing.num_items != x.shape[0]:
            raise RoutingError(
                f"the plan has {routing.num_items} items at {ctx.site!r}, the input {x.shape[0]}. Give sequence "
                f"and position in both plan and context to match items by place."
            )
        return routing if ctx.mask is None else routing.masked(ctx.mask)


def _places(plan: RoutePlan, ctx: RouteContext) -> Tensor | None:
    """[T] int64: where each item of the context stands in the plan; None where places are not known."""
    if plan.sequence is None or plan.position is None or ctx.sequence is None or ctx.position is None:
        return None
    if plan.num_items == 0:
        return None
    real = torch.ones_like(plan.position, dtype=torch.bool) if plan.mask is None else plan.mask.bool()
    rows = real.nonzero().flatten()
    asked = torch.stack([ctx.sequence, ctx.position], dim=1)
    slot, found = _find(torch.stack([plan.sequence, plan.position], dim=1)[rows], asked)
    missing = ~found if ctx.mask is None else ~found & ctx.mask.bool()
    if bool(missing.any()):
        sequence, position = asked[missing][0].tolist()
        raise RoutingError(f"the plan has no item at sequence {sequence}, position {position}.")
    index = torch.zeros_like(slot)  # where nothing is found the item is masked, and any row serves
    index[found] = rows[slot[found]]
    return index


def _find(known: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """For each row of ``wanted [T, 2]`` a row number of ``known [N, 2]`` that equals it, and whether there is one."""
    # equal pairs get equal keys, whatever the numbers are
    keys = torch.unique(torch.cat([known, wanted]), dim=0, return_inverse=True)[1]
    ordered, order = torch.sort(keys[: len(known)], stable=True)
    place = torch.searchsorted(ordered, keys[len(known) :])
    inside = place < len(known)
    slot = torch.zeros_like(place)
    slot[inside] = order[place[inside]]
    found = inside.clone()
    found[inside] = ordered[place[inside]] == keys[len(known) :][inside]
    return slot, found
