"""A row of the router battery: a router, its facts, and its rule in plain Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from coterie.routers.base import Router, Scope
from coterie.routing import RouteContext

# (logits of the routes one item may use, k) -> weight of each route it takes
Rule = Callable[[Mapping[int, float], int], Mapping[int, float]]
# the same for all items at once, with the context that says who they are and what is asked; k is None where not asked
RuleOfAll = Callable[[Sequence[Mapping[int, float]], int | None, RouteContext], Sequence[Mapping[int, float]]]


@dataclass(frozen=True)
class RouterCase:
    """A row of the table.

    Attributes:
        name: shown in the test's id.
        build: makes the router; called after ``torch.manual_seed``.
        rule: the same decision for one item in plain Python; route ids that tie go to the lower id.
        k: choices per item the router was built with; most: the most an override may ask for.
        k_is: what k says: exactly so many choices, at most, on average over the items, or nothing.
        rule_of_all: in place of ``rule``, where items compete, draws are made or more than k can be asked for.
        asked: request-time options the router reads besides k, each with a value to try.
        alone: an item is routed alike alone and in company.
        width: D of the items.
        shape: of one item, where items are no vectors: (C, H, W) of images.
        settle: gives the parameters values; default: normal ones, which deep nets turn into logits beyond any softmax.
        vocab: ids of the context are drawn below it.
        carry_width: columns of the carry that the items come with; 0 where they come without.
        by_probs: parameters that learn from `Routing.probs` alone, and get no gradient from the weights.
        learned, causal, variable_k, carries, stochastic, scope: the facts the router must declare.
    """

    name: str
    build: Callable[[], Router]
    rule: Rule | None
    k: int
    most: int
    k_is: Literal["exactly", "at most", "on average", "nothing"] = "exactly"
    rule_of_all: RuleOfAll | None = None
    asked: tuple[tuple[str, Any], ...] = ()
    alone: bool = True
    width: int = 8
    shape: tuple[int, ...] = ()
    settle: Callable[[Router], None] | None = None
    vocab: int = 32
    carry_width: int = 0
    by_probs: tuple[str, ...] = ()
    learned: bool = True
    causal: bool = True
    variable_k: bool = False
    carries: bool = False
    stochastic: bool = False
    scope: Scope = "token"

    def make(self) -> Router:
        """The router, the same one every time, with parameters large enough to tell items apart."""
        torch.manual_seed(0)
        router = self.build()
        (self.settle or _normal)(router)
        return router

    def items(self, num_items: int = 13, seed: int = 1) -> tuple[Tensor, RouteContext]:
        """Random items and a context that tells who they are."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(num_items, *(self.shape or (self.width,)), generator=generator)
        ids = torch.randint(self.vocab, (num_items,), generator=generator)
        place = torch.arange(num_items)
        carry = torch.randn(num_items, self.carry_width, generator=generator) if self.carry_width else None
        return x, RouteContext(ids=ids, position=place % 7, sequence=place // 7, seed=3, carry=carry)


def _normal(router: Router) -> None:
    for parameter in router.parameters():
        nn.init.normal_(parameter)


def limited_contexts(case: RouterCase, num_experts: int) -> list[tuple[str, Tensor, RouteContext]]:
    """Items and a context for every limit a context can set, alone and together, each with a name."""
    x, ctx = case.items()
    generator = torch.Generator().manual_seed(5)
    bias = torch.randn(len(x), num_experts, generator=generator) * 2
    allowed = torch.rand(len(x), num_experts, generator=generator) < 0.5
    mask = torch.arange(len(x)) % 4 != 0
    changes: dict[str, dict[str, Any]] = {
        "plain": {},
        "bias per item": {"bias": bias},
        "bias per sequence": {"bias": bias[:2, None], "sequence": torch.arange(len(x)) % 2},
        "allowed": {"allowed": allowed},
        "k=1": {"overrides": {"k": 1}},
        "k=most": {"overrides": {"k": case.most}},
        **{f"{option}={value}": {"overrides": {option: value}} for option, value in case.asked},
        "training": {"training": True, "step": 5, "micro_step": 1},
        "two passes": {"pass_id": torch.arange(len(x)) % 2},
        "all at once": {"bias": bias, "allowed": allowed, "mask": mask, "overrides": {"k": case.most}},
    }
    return [(name, x, replace(ctx, **change)) for name, change in changes.items()]


def dense_by_rule(case: RouterCase, router: Router, x: Tensor, ctx: RouteContext) -> Tensor:
    """[T, E]: the row's rule on the score part's logits, biased and limited by plain loops."""
    dense = torch.zeros(len(x), router.num_experts)
    with torch.no_grad():
        logits = router.score(x, ctx)[0]
    open_routes = [_open_routes(router, logits[t].tolist(), t, ctx) for t in range(len(x))]
    if case.rule_of_all is not None:
        taken = case.rule_of_all(open_routes, ctx.overrides.get("k"), ctx)
    else:
        assert case.rule is not None
        taken = [case.rule(routes, ctx.overrides.get("k", case.k)) for routes in open_routes]
    for t, weights in enumerate(taken):
        for route, weight in weights.items():
            if router.routes.expert[route] < router.num_experts:
                dense[t, router.routes.expert[route]] += weight
    return dense


def _open_routes(router: Router, logits: list[float], t: int, ctx: RouteContext) -> dict[int, float]:
    """Route -> logit with bias, of the routes that item ``t`` may use."""
    if ctx.mask is not None and not ctx.mask[t]:
        return {}
    routes = {}
    for route, expert in enumerate(router.routes.expert):
        null = expert == router.num_experts
        if null or ctx.allowed is None or ctx.allowed[t, expert]:
            routes[route] = logits[route] + (0.0 if null else _bias(ctx, t, expert))
    return routes


def _bias(ctx: RouteContext, t: int, expert: int) -> float:
    if ctx.bias is None:
        return 0.0
    if ctx.bias.dim() == 3:
        assert ctx.sequence is not None
        return float(ctx.bias[int(ctx.sequence[t]), 0, expert])
    return float(ctx.bias[t, expert])


def select_items(ctx: RouteContext, index: Tensor) -> RouteContext:
    """The context of the items ``index``."""
    names = ("mask", "sequence", "position", "ids", "carry")
    return replace(ctx, **{n: value[index] for n in names if (value := getattr(ctx, n)) is not None})
