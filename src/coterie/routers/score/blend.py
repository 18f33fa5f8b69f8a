"""Two scores in one: a base, and another one mixed in by a learned share."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor, nn

from coterie.errors import OptionError, RoutingError
from coterie.routers.base import Scope, Score
from coterie.routing import RouteContext

_NARROW_TO_WIDE: tuple[Scope, ...] = get_args(Scope)


class Blend(Score):
    """``logits = base + gamma * extra``, rounded to the dtype of the base.

    With ``gamma = 0`` the logits are the base's, bit for bit: a way to give a trained router a new
    sense without a jolt. ``gamma`` is learned; at 0 it has a gradient at once and ``extra`` from the next
    step on. The logits of ``extra`` must be finite.

    Carries pass side by side: the base's columns, then the other's.

    Args:
        base, extra: of equally many routes.
        gamma: to start from.

    Raises:
        OptionError: they have unequal numbers of routes, or both carry and do not say how much.
    """

    def __init__(self, base: Score, extra: Score, gamma: float = 0.0) -> None:
        super().__init__()
        if base.num_routes != extra.num_routes:
            raise OptionError(f"the base has {base.num_routes} routes, the extra score {extra.num_routes}.")
        if base.carries and extra.carries and not (base.carry_width and extra.carry_width):
            raise OptionError("two scores that carry can blend only if both declare their carry_width.")
        self.base, self.extra = base, extra
        self.gamma = nn.Parameter(torch.tensor(float(gamma)))
        self.num_routes = base.num_routes
        self.causal = base.causal and extra.causal
        self.variable_k = base.variable_k or extra.variable_k
        self.carries = base.carries or extra.carries
        self.carry_width = base.carry_width + extra.carry_width
        self.stochastic = base.stochastic or extra.stochastic
        self.scope = max(base.scope, extra.scope, key=_NARROW_TO_WIDE.index)

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        to_base, to_extra = self._carries(ctx)
        base, base_carry = self.base(x, to_base)
        extra, extra_carry = self.extra(x, to_extra)
        logits = (base + self.gamma.to(extra.dtype) * extra).to(base.dtype)
        kept = [carry for carry in (base_carry, extra_carry) if carry is not None]
        return logits, None if not kept else kept[0] if len(kept) == 1 else torch.cat(kept, dim=1)

    def _carries(self, ctx: RouteContext) -> tuple[RouteContext, RouteContext]:
        if ctx.carry is None or not (self.base.carries and self.extra.carries):
            return ctx, ctx
        widths = self.base.carry_width, self.extra.carry_width
        if ctx.carry.dim() != 2 or ctx.carry.shape[1] != sum(widths):
            raise RoutingError(f"this router carries {sum(widths)} columns, found {tuple(ctx.carry.shape)}.")
        base, extra = ctx.carry.split(widths, dim=1)
        return ctx.at(ctx.site, base), ctx.at(ctx.site, extra)
