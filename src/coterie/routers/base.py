"""The router: one final class made of three parts.

    score    (x, ctx) -> logits [T, R], carry      what each route looks like to each item
    select   (scores, ctx) -> chosen [T, K]        which routes are taken
    weigh    (scores, chosen) -> weights [T, K]    with what weight; also what `probs` means

Nulls, biases, masks and residuals act before selection and cannot be wrapped around a finished
decision, so `Router` applies them between the parts, once, for every combination. A new part is a
final subclass of `Score`, `Select` or `Weigh` in a file of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.routers.limits import allowed_routes, biased, replayed
from coterie.routers.routes import RouteTable
from coterie.routing import RouteContext, Routing

Scope = Literal["token", "sequence", "image", "batch"]
_SCOPES: tuple[str, ...] = get_args(Scope)


@dataclass(frozen=True, eq=False)
class Scores:
    """What a selection may look at.

    Attributes:
        logits: [T, R] with `RouteContext.bias` added, in the dtype the score part computed.
        probs: [T, R] float32 or wider, as the weigh part understands them; 0 where not allowed.
        allowed: [T, R] bool, None where everything is: `RouteContext.allowed` and `mask` together.
    """

    logits: Tensor
    probs: Tensor
    allowed: Tensor | None = None


class RouterLike(Protocol):
    """What a layer needs of whatever decides: a call and its declared facts."""

    @property
    def num_experts(self) -> int: ...
    @property
    def causal(self) -> bool: ...
    @property
    def variable_k(self) -> bool: ...
    @property
    def learned(self) -> bool: ...
    @property
    def carries(self) -> bool: ...
    @property
    def stochastic(self) -> bool: ...
    @property
    def scope(self) -> Scope: ...
    def __call__(self, x: Tensor, ctx: RouteContext | None = None) -> Routing: ...


class Part(nn.Module, ABC):
    """A router's part, with what it declares about itself.

    Attributes:
        causal: an item's result reads no later item of its sequence.
        variable_k: items may end with different numbers of routes.
        carries: reads and returns a state from layer to layer.
        stochastic: draws; otherwise equal inputs give equal results.
        scope: over what one decision is taken.
    """

    causal: bool = True
    variable_k: bool = False
    carries: bool = False
    stochastic: bool = False
    scope: Scope = "token"


class Score(Part):
    """(x, ctx) -> logits [T, R] in any floating dtype, and a carry or None. -inf means never.

    Attributes:
        num_routes: R.
        carry_width: columns of the carry [T, W], where it is such a table; 0 otherwise.
    """

    num_routes: int
    carry_width: int = 0

    @abstractmethod
    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        """``x`` is [T, D]."""


class Select(Part):
    """(scores, ctx) -> chosen [T, K] int64 route ids in rank order, R where empty."""

    @abstractmethod
    def forward(self, scores: Scores, ctx: RouteContext) -> Tensor:
        """Must choose nothing where ``scores.allowed`` is False."""

    def choose(self, scores: Scores, ctx: RouteContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What `forward` returns, with what it cost: numbers for `Routing.extra`, such as the share dropped."""
        return self(scores, ctx), {}


class Weigh(Part):
    """(scores, chosen) -> weights [T, K] float32 or wider; what stands at empty places is ignored."""

    @abstractmethod
    def probs(self, logits: Tensor, allowed: Tensor | None) -> Tensor:
        """[T, R] float32 or wider: what each route is worth before selection, 0 where not allowed."""

    @abstractmethod
    def forward(self, scores: Scores, chosen: Tensor) -> Tensor:
        """Gradient flows to ``scores.logits`` or ``scores.probs``."""


class Router(nn.Module):
    """Items to experts, by three parts and a table of routes. Stateless between calls; thread-safe in eval.

    Args:
        score, select, weigh: the parts.
        routes: what each route is; default: route r is expert r.

    Raises:
        OptionError: the score part has another number of routes than the table.
    """

    def __init__(self, score: Score, select: Select, weigh: Weigh, routes: RouteTable | None = None) -> None:
        super().__init__()
        self.score, self.select, self.weigh = score, select, weigh
        self.routes = RouteTable.identity(score.num_routes) if routes is None else routes
        if score.num_routes != self.routes.num_routes:
            raise OptionError(f"the score has {score.num_routes} routes, the table {self.routes.num_routes}.")

    def forward(self, x: Tensor, ctx: RouteContext | None = None) -> Routing:
        """Decide for ``x [T, D]``.

        `RouteContext.bias` is added to the logits, so it reaches selection, probs and weights;
        routes that are not allowed have probability 0 and are not chosen; items whose mask is
        False choose nothing. ``logits`` of the result carry the bias, not the prohibitions.
        `RouteContext.chosen` stands in for the selection: a replay weighs what was chosen before.

        Raises:
            RoutingError: the context's tables do not fit T items, E experts and R routes.
            OptionError: an override is out of range.
        """
        ctx = RouteContext() if ctx is None else ctx
        logits, carry = self.score(x, ctx)
        logits = biased(logits, self.routes, ctx)
        allowed = allowed_routes(logits, self.routes, ctx)
        scores = Scores(logits, self.weigh.probs(logits, allowed), allowed)
        chosen, extra = self._choose(scores, ctx)
        weights = self.weigh(scores, chosen)
        return Routing.from_padded(
            weights, self.routes.experts_of(chosen), self.num_experts,
            chosen=chosen, logits=logits, probs=scores.probs, carry=carry, extra=extra,
        )  # fmt: skip

    def _choose(self, scores: Scores, ctx: RouteContext) -> tuple[Tensor, Mapping[str, Tensor]]:
        # a choice has no gradient; what autograd kept of it here would be missing when it is replayed
        with torch.no_grad():
            if ctx.chosen is None:
                return self.select.choose(scores, ctx)
            return replayed(ctx.chosen, scores.logits, scores.allowed), {}

    @property
    def num_experts(self) -> int:
        """E."""
        return self.routes.num_experts

    @property
    def causal(self) -> bool:
        """No item's routing reads a later item of its sequence."""
        return all(part.causal for part in self._parts)

    @property
    def variable_k(self) -> bool:
        """Items may have different numbers of experts: by the selection, or by null and alias routes."""
        return any(part.variable_k for part in self._parts) or not self.routes.is_identity

    @property
    def learned(self) -> bool:
        """Some parameter takes a gradient."""
        return any(p.requires_grad for p in self.parameters())

    @property
    def carries(self) -> bool:
        """Reads `RouteContext.carry` and returns `Routing.carry`."""
        return any(part.carries for part in self._parts)

    @property
    def stochastic(self) -> bool:
        """Draws, from the counters of the context."""
        return any(part.stochastic for part in self._parts)

    @property
    def scope(self) -> Scope:
        """The widest scope of its parts: token, sequence, image or batch."""
        return max((part.scope for part in self._parts), key=_SCOPES.index)

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self.score, self.select, self.weigh
