"""Capacity around any selection, and experts that choose: statistics, modes, facts, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from coterie.errors import OptionError
from coterie.routers import (
    SiteShape,
    adamoe,
    build_routers,
    expert_choice,
    sigmoid_bias,
    thor,
    top_k,
    top_p,
    with_capacity,
)
from coterie.routers.base import Router
from coterie.routers.score import ConstantScore
from coterie.routers.select import AtLeastTrue, Capacity, TopK
from coterie.routers.weigh import Uniform
from coterie.routing import RouteContext

D, E, T = 8, 4, 40
TRAINING = RouteContext(training=True)


def skewed(router: Router) -> Router:
    torch.nn.init.normal_(router.score.weight)  # type: ignore[arg-type]
    with torch.no_grad():
        router.score.weight[0] *= 3  # type: ignore[index, operator]
    return router


def test_no_expert_has_more_than_its_places() -> None:
    router, x = skewed(top_k(D, E, 2)), torch.randn(T, D)
    free = router(x)
    limited = with_capacity(router, 1.0)(x, TRAINING).check()
    assert int(free.items_per_expert().max()) > T * 2 // E
    assert int(limited.items_per_expert().max()) == T * 2 // E
    lost = free.num_assignments - limited.num_assignments
    assert float(limited.extra["dropped"]) == pytest.approx(lost / free.num_assignments)
    torch.testing.assert_close(limited.dense().sum(1), (limited.experts_per_item() > 0).float())


def test_the_improbable_go_first_or_the_late() -> None:
    logits = torch.tensor([[0.1], [0.4], [0.2], [0.3]]) * torch.tensor([[1.0, -9.0]])
    router = top_k(2, 2, 1)
    with torch.no_grad():
        router.score.weight.copy_(torch.eye(2))  # type: ignore[operator, union-attr]
    by_probability = with_capacity(router, 1.0)(logits, TRAINING)
    by_position = with_capacity(router, 1.0, order="position")(logits, TRAINING)
    assert by_probability.item.tolist() == [1, 3]
    assert by_position.item.tolist() == [0, 1]
    places = RouteContext(training=True, position=torch.tensor([3, 2, 1, 0]), sequence=torch.zeros(4).long())
    assert with_capacity(router, 1.0, order="position")(logits, places).item.tolist() == [2, 3]


def test_room_for_everybody_changes_nothing() -> None:
    router, x = skewed(top_k(D, E, 2)), torch.randn(T, D)
    roomy = with_capacity(router, float(E))(x, TRAINING)
    assert torch.equal(roomy.weight, router(x).weight)
    assert roomy.extra["dropped"] == 0


def test_outside_training_there_is_no_limit_unless_asked_for() -> None:
    router, x = skewed(top_k(D, E, 2)), torch.randn(T, D)
    training, always = with_capacity(router, 1.0), with_capacity(router, 2.0, eval_factor=1.0)
    evaluating = with_capacity(router, None, eval_factor=1.0)
    assert torch.equal(training(x).weight, router(x).weight)
    assert training(x).extra == {}
    assert float(always(x).extra["dropped"]) > float(always(x, TRAINING).extra["dropped"])
    assert evaluating(x, TRAINING).extra == {}
    assert [r.causal for r in (training, always, evaluating)] == [True, False, False]
    assert [r.scope for r in (training, always, evaluating)] == ["token", "batch", "batch"]
    assert [r.variable_k for r in (training, always, evaluating)] == [False, True, True]


def test_nulls_need_no_place() -> None:
    router, x = adamoe(D, E, 3, num_nulls=4), torch.randn(T, D)
    with torch.no_grad():
        router.score.null_rows.copy_(router.score.inner.weight * 5)  # type: ignore[operator, union-attr]
    free, limited = router(x), with_capacity(router, 0.2)(x, TRAINING)
    places = -(-T * 3 // 8) * 0.2
    assert int(limited.items_per_expert().max()) <= int(places) + 1
    assert free.chosen is not None
    assert limited.chosen is not None
    assert int((free.chosen >= E).sum()) < int(((limited.chosen >= E) & (limited.chosen < 8)).sum()) + T * 3
    nulls = [((r.chosen >= E) & (r.chosen < 8)).sum(1) for r in (free, limited)]
    assert torch.equal(*nulls)


@pytest.mark.parametrize(
    "router",
    [top_p(D, E, p=0.8, k_max=3), sigmoid_bias(D, E, 2), thor(D, E, 2), expert_choice(D, E, 2)],
    ids=["top_p", "sigmoid_bias", "thor", "expert_choice"],
)
def test_it_wraps_any_selection(router: Router) -> None:
    x, place = torch.randn(T, D), torch.arange(T)
    ctx = RouteContext(training=True, sequence=place * 0, position=place)
    free, limited = router(x, ctx), with_capacity(router, 0.5)(x, ctx).check()
    assert free.chosen is not None
    assert int(limited.items_per_expert().max()) <= -(-int((free.chosen < E).sum()) // (2 * E))
    assert set(limited.extra) == {*free.extra, "dropped"}
    assert with_capacity(router, 0.5).stochastic == router.stochastic


def test_a_selection_that_mends_may_stand_around_it() -> None:
    select = AtLeastTrue(Capacity(TopK(1, E), 0.5), E)
    routing = Router(ConstantScore(E), select, Uniform())(torch.zeros(T, D), TRAINING)
    assert "dropped" in routing.extra


def test_a_recipe_limits_any_router() -> None:
    sites = [SiteShape(D, E, 2)] * 2
    routers = build_routers("top_k", sites, {"capacity": 1.0, "capacity_order": "position"})
    assert all(isinstance(r.select, Capacity) and r.select.order == "position" for r in routers)
    assert "dropped" in routers[0](torch.randn(T, D), TRAINING).extra
    assert isinstance(build_routers("top_k", sites, {})[0].select, TopK)
    rmoe = build_routers("rmoe", sites, {"capacity": 1.25})
    assert all(isinstance(r.select, Capacity) for r in rmoe)
    with pytest.raises(OptionError, match="mean 'capacity'"):
        build_routers("top_k", sites, {"capacty": 1.0})


def test_nobody_is_dropped_where_nobody_is() -> None:
    limited = with_capacity(top_k(D, E, 2), 1.0)
    assert limited(torch.zeros(0, D), TRAINING).extra["dropped"] == 0
    ctx = RouteContext(training=True, mask=torch.zeros(T, dtype=torch.bool))
    assert limited(torch.randn(T, D), ctx).extra["dropped"] == 0


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (lambda r: with_capacity(r, None), "give one, such as 1.25"),
        (lambda r: with_capacity(r, 0.0), "capacity=0.0"),
        (lambda r: with_capacity(r, 1.0, eval_factor=-1), "eval_capacity=-1"),
        (lambda r: with_capacity(r, 1.0, order="random"), "'probability' or 'position'"),
        (lambda _: expert_choice(D, E, 5), "1 to 4"),
    ],
)
def test_refusals(wrap: Callable[[Any], object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        wrap(top_k(D, E, 2))


def test_expert_choice_evens_the_load_and_says_that_it_reads_ahead() -> None:
    router, x = skewed(expert_choice(D, E, 2)), torch.randn(T, D)
    routing = router(x)
    assert routing.items_per_expert().tolist() == [T * 2 // E] * E
    assert not router.causal
    assert (router.variable_k, router.scope) == (True, "batch")
    assert len(set(routing.experts_per_item().tolist())) > 1
    mask = torch.arange(T) < 10
    assert router(x, RouteContext(mask=mask)).items_per_expert().tolist() == [5] * E
    assert router(x, RouteContext(overrides={"k": 1})).items_per_expert().tolist() == [10] * E
    alone = router(x[:1])
    assert alone.experts_per_item().tolist() == [E], "each expert has one item to choose from"


def test_softmax_may_be_corrected_too() -> None:
    router, x = skewed(top_k(D, E, 1, corrected=True)), torch.randn(T, D)
    assert isinstance(router.select, TopK)
    assert router.select.correction is not None
    before = router(x)
    router.select.correction[3] = 2.0
    after = router(x)
    assert after.expert.tolist() == [3] * T
    assert torch.equal(before.probs, after.probs)  # type: ignore[arg-type]
