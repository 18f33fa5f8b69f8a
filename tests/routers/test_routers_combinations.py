"""Parts combine freely: every score with every selection and every weighing, without a class for any of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from coterie.routers import Router, RouteTable, Score, Select, Weigh, adamoe
from coterie.routers.score import (
    Blend,
    ConstantScore,
    Cosine,
    Frozen,
    HashScore,
    LinearScore,
    PooledScore,
    Recurrent,
    ResidualScore,
    SmallConvScore,
    WithNulls,
    random_table,
)
from coterie.routers.select import AtLeastTrue, Capacity, Draw, ExpertChoice, GroupLimited, MinP, TopK, TopP
from coterie.routers.weigh import Raw, Selected, StraightThrough, TrueOnly, Uniform
from coterie.routing import RouteContext
from coterie.testing import ROUTER_CHECKS, RouterCase
from coterie.testing.router_company import expert_choice_rule, min_p_rule, top_p_rule
from coterie.testing.router_rules import softmax_after_rule

D, R, TRUE, T = 8, 6, 4, 15

SCORES: dict[str, Callable[[], Score]] = {
    "linear": lambda: LinearScore(D, R, bias=True),
    "cosine": lambda: Cosine(D, R),
    "frozen": lambda: Frozen(D, R),
    "constant": lambda: ConstantScore(R),
    "hash": lambda: HashScore(random_table(32, R, 3), R),
    "recurrent": lambda: Recurrent(D, R, state=5, residual=0.5),
    "recurrent cosine": lambda: Recurrent(D, R, state=5, cell="lstm", readout="cosine"),
    "blend": lambda: Blend(LinearScore(D, R), Recurrent(D, R, state=5), gamma=0.5),
    "nulls": lambda: WithNulls(LinearScore(D, TRUE), R - TRUE, D),
    "nulls over recurrent": lambda: WithNulls(Recurrent(D, TRUE, state=5), R - TRUE, D),
    "pooled": lambda: PooledScore(R, 2, bound=20.0),
    "small conv": lambda: SmallConvScore(R, 2, bound=20.0),
    "residual": lambda: ResidualScore(R, 2, depth=8, width=1, bound=20.0).eval(),
}
SHAPES: dict[str, tuple[int, ...]] = dict.fromkeys(("pooled", "small conv", "residual"), (2, 4, 4))  # of one item
SELECTS: dict[str, Callable[[], Select]] = {
    "top-k": lambda: TopK(2, R),
    "corrected": lambda: TopK(2, R, corrected=True),
    "groups": lambda: GroupLimited(2, R, num_groups=3, keep_groups=2),
    "top-p": lambda: TopP(0.6, R),
    "min-p": lambda: MinP(0.5, R, k_max=3),
    "draw": lambda: Draw(2, R),
    "expert choice": lambda: ExpertChoice(2, R),
    "capacity": lambda: Capacity(TopK(2, R), 1.0, eval_factor=1.0),
    "at least true": lambda: AtLeastTrue(TopP(0.6, R), TRUE),
}
WEIGHS: dict[str, Callable[[], Weigh]] = {
    "raw": lambda: Raw("softmax"),
    "renormalised": lambda: Raw("softmax", renormalise=True),
    "sigmoid": lambda: Raw("sigmoid", renormalise=True, scale=2.5),
    "selected": Selected,
    "uniform": lambda: Uniform(3.0),
    "true only": lambda: TrueOnly(TRUE),
    "straight-through": StraightThrough,
    "straight-through of logits": lambda: StraightThrough("selected"),
}


def context(router: Router, mask: torch.Tensor | None = None) -> RouteContext:
    place = torch.arange(T)
    width = router.score.carry_width
    return RouteContext(
        ids=place % 32,
        sequence=place // 5,
        position=place % 5,
        mask=mask,
        carry=torch.randn(T, width) if width else None,
    )


@pytest.mark.parametrize("weigh", WEIGHS)
@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("score", SCORES)
def test_every_combination(score: str, select: str, weigh: str) -> None:
    has_nulls = "nulls" in score or weigh == "true only"
    routes = RouteTable.with_nulls(TRUE, R - TRUE) if has_nulls else RouteTable.identity(R)
    router = Router(SCORES[score](), SELECTS[select](), WEIGHS[weigh](), routes)
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(T, *SHAPES.get(score, (D,)), requires_grad=True)
    mask = torch.arange(T) % 4 != 1
    routing = router(x, context(router, mask)).check()
    assert bool((routing.experts_per_item()[~mask] == 0).all())
    assert not bool(routing.probs[~mask].any())
    assert bool((routing.weight >= 0).all())
    assert routing.num_experts == routes.num_experts
    assert (routing.carry is not None) == router.carries
    if weigh in ("renormalised", "selected", "sigmoid", "uniform", "true only"):
        total = routing.dense().sum(1)[routing.experts_per_item() > 0]
        goal = {"sigmoid": 2.5, "uniform": 3.0}.get(weigh, 1.0)
        if has_nulls and weigh != "true only":  # what the nulls hold is gone
            assert bool((total <= goal + 1e-5).all())
        else:
            torch.testing.assert_close(total, torch.full_like(total, goal))
    cost = routing.weight.square().sum() + routing.probs.square().sum() + routing.logits.clamp(min=-50).sum()
    if cost.requires_grad:
        cost.backward()
    for name, leaf in (("items", x), *router.named_parameters()):
        assert leaf.grad is None or bool(torch.isfinite(leaf.grad).all()), name


@pytest.mark.parametrize("weigh", WEIGHS)
@pytest.mark.parametrize("select", SELECTS)
@pytest.mark.parametrize("score", SCORES)
def test_nobody_to_route(score: str, select: str, weigh: str) -> None:
    routes = RouteTable.with_nulls(TRUE, R - TRUE) if "nulls" in score or weigh == "true only" else None
    router = Router(SCORES[score](), SELECTS[select](), WEIGHS[weigh](), routes)
    empty = torch.zeros(0, dtype=torch.int64)
    routing = router(
        torch.zeros(0, *SHAPES.get(score, (D,))), RouteContext(ids=empty, sequence=empty, position=empty)
    ).check()
    assert (routing.num_items, routing.num_assignments) == (0, 0)
    nobody = router(torch.randn(T, *SHAPES.get(score, (D,))), context(router, torch.zeros(T, dtype=torch.bool))).check()
    assert nobody.num_assignments == 0


P: dict[str, Any] = {"rule": None, "k": R, "most": R, "variable_k": True, "k_is": "at most", "asked": (("p", 0.3),)}
ROWS = [
    RouterCase(
        "top-p of recurrent", lambda: Router(Recurrent(D, R, state=4), TopP(0.5, R), Raw("softmax")),
        rule_of_all=top_p_rule(0.5), carries=True, carry_width=4, **P,
    ),
    RouterCase(
        "min-p of a blend", lambda: Router(
            Blend(LinearScore(D, R), Cosine(D, R), gamma=0.5), MinP(0.4, R), Raw("softmax", renormalise=True)
        ), rule_of_all=min_p_rule(0.4), **P,
    ),
    RouterCase(
        "adamoe by top-p", lambda: adamoe(D, TRUE, R, num_nulls=2, select="top_p", p=0.7),
        rule_of_all=top_p_rule(0.7, k_max=R, normalise=True, true=TRUE), by_probs=("score.null_rows",), **P,
    ),
    RouterCase(
        "top-p of nulls over cosine", lambda: Router(
            WithNulls(Cosine(D, TRUE), 2, D), TopP(0.7, R), TrueOnly(TRUE), RouteTable.with_nulls(TRUE, 2)
        ), rule_of_all=top_p_rule(0.7, normalise=True, true=TRUE), by_probs=("score.null_rows",), **P,
    ),
    RouterCase(
        "expert choice of frozen", lambda: Router(Frozen(D, R), ExpertChoice(2, R), Raw("softmax")), rule=None,
        rule_of_all=expert_choice_rule(2, R), k=2, most=R, k_is="on average", causal=False, variable_k=True,
        scope="batch", learned=False, alone=False,
    ),
    RouterCase(
        "adamoe as its family", lambda: adamoe(D, TRUE, 2, num_nulls=0, bias=True), softmax_after_rule(), k=2, most=TRUE
    ),
]  # fmt: skip


@pytest.mark.parametrize("check", ROUTER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_router(case: RouterCase, check: Callable[[RouterCase], None]) -> None:
    check(case)
