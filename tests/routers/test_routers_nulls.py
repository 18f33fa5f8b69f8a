"""Null routes: what they cost, what they learn from, and what they never do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.experts import FFN, FFNShape, with_identity
from coterie.layers import MoE
from coterie.ops import switch_balance
from coterie.routers import Router, RouteTable, Scores, adamoe, top_k, top_p
from coterie.routers.score import LinearScore, WithNulls
from coterie.routers.select import AtLeastTrue, GroupLimited, TopK, correction_of
from coterie.routers.weigh import Raw, Selected, TrueOnly
from coterie.routing import RouteContext, Routing

D, N, M, K = 16, 8, 8, 3


def spread(router: Router) -> Router:
    """Rows large enough to tell items apart."""
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_()
    return router


def with_offset(value: float, **options: int) -> Router:
    router = spread(adamoe(D, N, K, num_nulls=M, **options))
    assert isinstance(router.score, WithNulls)
    router.score.offset.fill_(value)
    return router


def test_without_nulls_it_is_renormalised_top_k():
    plain, ours = spread(top_k(D, N, K)), adamoe(D, N, K, num_nulls=0)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(50, D)
    expected, found = plain(x), ours(x)
    assert torch.equal(found.chosen, expected.chosen)
    torch.testing.assert_close(found.weight, expected.weight)
    assert torch.equal(switch_balance(found), switch_balance(expected))
    assert not ours.variable_k


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_true_weights_sum_to_one_or_there_are_none(offset):
    router = with_offset(offset)
    x = torch.randn(200, D)
    routing = router(x).check()
    any_true = routing.experts_per_item() > 0
    assert bool(any_true.all()) == (offset < 0)
    assert bool(any_true.any()) == (offset <= 0)
    torch.testing.assert_close(routing.dense().sum(1), any_true.float())
    y = MoE(router, FFN(N, FFNShape(D, 8)))(x)
    assert not bool(y[~any_true].any())
    assert bool(torch.isfinite(y).all())
    (y.sum() + switch_balance(routing, num_nulls=M)).backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in router.parameters())


def test_weights_are_the_paper_s_quotient():
    router = spread(adamoe(D, N, K, num_nulls=M))
    routing = router(torch.randn(40, D))
    taken = routing.dense() > 0
    paper = routing.probs[:, :N] * taken
    torch.testing.assert_close(routing.dense(), paper / paper.sum(1, keepdim=True).clamp_min(1e-20))


@pytest.mark.parametrize(("nulls", "k"), [(8, 3), (16, 3), (8, 4), (3, 2)])
def test_the_budget_under_logits_that_all_look_alike(nulls, k):
    routes = N + nulls
    logits = torch.randn(20_000, routes, generator=torch.Generator().manual_seed(1))
    chosen = torch.topk(logits, k).indices
    routing = Routing.from_padded(torch.ones(chosen.shape), RouteTable.with_nulls(N, nulls).experts_of(chosen), N)
    true, null = routing.experts_per_item(), (chosen >= N).sum(1)
    assert bool((true + null == k).all())
    expected = k * N / routes
    assert abs(float(true.float().mean()) - expected) < 4 * (expected / len(logits)) ** 0.5
    found = adamoe(D, N, k, num_nulls=nulls)(torch.randn(20_000, D))
    assert bool((found.experts_per_item() + (found.chosen >= N).sum(1) == k).all())


def shuffled_nulls(routing: Routing) -> Routing:
    """Each item's nulls under other ids, probabilities and all alike."""
    chosen = routing.chosen.clone()
    null = chosen >= N
    order = torch.rand(len(chosen), M, generator=torch.Generator().manual_seed(3)).argsort(1)
    chosen[null] = N + order.gather(1, (chosen - N).clamp(min=0))[null]
    return Routing(
        routing.item, routing.expert, routing.weight, routing.num_items, N,
        chosen=chosen, logits=routing.logits, probs=routing.probs,
    )  # fmt: skip


def test_averaged_balance_does_not_tell_nulls_apart():
    routing = spread(adamoe(D, N, K, num_nulls=M))(torch.randn(60, D))
    other = shuffled_nulls(routing)
    assert not torch.equal(other.chosen, routing.chosen)
    averaged = [switch_balance(each, num_nulls=M) for each in (routing, other)]
    individual = [switch_balance(each, num_nulls=M, nulls="individual") for each in (routing, other)]
    torch.testing.assert_close(averaged[0], averaged[1])
    assert not torch.allclose(individual[0], individual[1], rtol=1e-4)


def test_equal_slots_cost_one():
    chosen = torch.arange(N + M).repeat(K).view(-1, K)
    probs = torch.full((len(chosen), N + M), 1 / (N + M))
    experts = RouteTable.with_nulls(N, M).experts_of(chosen)
    routing = Routing.from_padded(torch.ones(chosen.shape), experts, N, chosen=chosen, probs=probs)
    for nulls in ("averaged", "individual"):
        torch.testing.assert_close(switch_balance(routing, num_nulls=M, nulls=nulls), torch.tensor(1.0))


def test_only_the_balance_loss_reaches_null_rows():
    router = spread(adamoe(D, N, K, num_nulls=M))
    x = torch.randn(60, D)
    layer = MoE(router, FFN(N, FFNShape(D, 8)))
    y, routing = layer.route_and_run(x)
    assert isinstance(router.score, WithNulls)
    y.square().sum().backward(retain_graph=True)
    assert router.score.null_rows.grad is not None
    assert not bool(router.score.null_rows.grad.any())
    switch_balance(routing, num_nulls=M).backward()
    assert bool(router.score.null_rows.grad.any())


def test_an_expert_that_nobody_chose_does_not_matter_and_is_not_called(monkeypatch):
    import coterie.experts.ffn as module

    calls: list[int] = []
    forward = module.expert_forward

    def counted(x: Tensor, *args: object, **options: object) -> Tensor:
        calls.append(len(x))
        return forward(x, *args, **options)

    monkeypatch.setattr(module, "expert_forward", counted)
    router = spread(adamoe(D, N, K, num_nulls=M))
    experts = FFN(N, FFNShape(D, 8), "loop")
    x = torch.randn(4, D)
    routing = router(x)
    load = routing.items_per_expert()
    before = experts(x, routing)
    assert calls == load[load > 0].tolist()
    with torch.no_grad():
        experts.down_proj[load == 0] = float("nan")
    assert bool((load == 0).any())
    assert torch.equal(experts(x, routing), before)


def test_padding_changes_neither_loss_nor_budget():
    router = spread(adamoe(D, N, K, num_nulls=M))
    x = torch.randn(30, D)
    alone = router(x)
    mask = torch.arange(37) < 30
    padded = router(torch.cat([x, torch.full((7, D), 9.0)]), RouteContext(mask=mask))
    torch.testing.assert_close(switch_balance(padded, mask, num_nulls=M), switch_balance(alone, num_nulls=M))
    assert int(padded.experts_per_item().sum()) == int(alone.experts_per_item().sum())


@pytest.mark.parametrize("min_true", [0, 1])
def test_min_true(min_true):
    router = with_offset(50.0, min_true=min_true)
    x = torch.randn(20, D)
    routing = router(x)
    assert routing.experts_per_item().tolist() == [min_true] * 20
    if min_true:
        assert torch.equal(routing.expert, routing.logits[:, :N].argmax(1))
        assert bool((routing.weight == 1).all())
        assert bool((routing.chosen < N + M).all())  # the number of choices stays


def test_min_true_asks_only_what_is_allowed():
    router = with_offset(50.0, min_true=1)
    x = torch.randn(6, D)
    allowed = torch.arange(N) == 5
    mask = torch.arange(6) != 2
    routing = router(x, RouteContext(allowed=allowed, mask=mask))
    assert routing.expert.tolist() == [5] * 5
    assert routing.item.tolist() == [0, 1, 3, 4, 5]
    nobody = router(x, RouteContext(allowed=torch.zeros(N, dtype=torch.bool)))
    assert nobody.num_assignments == 0
    assert nobody.chosen.shape == (6, K)


def test_equal_scores_go_to_the_true_expert():
    router = adamoe(D, N, N, num_nulls=M, copied=True)
    routing = router(torch.randn(40, D))
    assert isinstance(router.score, WithNulls)
    assert isinstance(router.score.inner, LinearScore)
    assert torch.equal(router.score.null_rows, router.score.inner.weight)
    for row in routing.chosen.tolist():  # a copy is chosen only after what it is a copy of
        assert {route - N for route in row if route >= N} <= {route for route in row if route < N}


def test_identity_nulls_give_back_the_item():
    router = spread(adamoe(D, N, K, num_nulls=M, null="identity"))
    experts = FFN(N, FFNShape(D, 8))
    layer = MoE(router, with_identity(experts))
    x = torch.randn(30, D)
    y, routing = layer.route_and_run(x)
    weights = routing.dense()
    torch.testing.assert_close(weights.sum(1), torch.ones(30))
    torch.testing.assert_close(
        weights[:, N],
        torch.softmax(routing.logits.gather(1, routing.chosen), 1).masked_fill(routing.chosen < N, 0).sum(1),
    )
    item, expert = weights[:, :N].nonzero().unbind(1)
    true = Routing(item, expert, weights[item, expert], 30, N)
    torch.testing.assert_close(y, experts(x, true) + weights[:, N:] * x)


def test_routes_to_an_identity():
    table = RouteTable.with_identity_nulls(2, 3)
    assert table == RouteTable((0, 1, 2, 2, 2), 3, passes=True)
    assert (table.num_experts, table.num_routes, table.num_nulls) == (3, 5, 3)
    assert [RouteTable.with_nulls(2, 3).num_nulls, RouteTable.identity(4).num_nulls] == [3, 0]
    assert RouteTable.aliases([0, 1, 1]).num_nulls == 0


@pytest.mark.parametrize(
    "select", [TopK(K, N + M), GroupLimited(K, N + M, num_groups=4, keep_groups=2), top_p(D, N + M, p=0.5).select],
    ids=["top_k", "group_limited", "top_p"],
)  # fmt: skip
def test_any_selection_may_choose_nulls(select):
    score = WithNulls(LinearScore(D, N), M, D)
    score.offset.fill_(1.0)
    plain = spread(Router(score, select, TrueOnly(N), RouteTable.with_nulls(N, M)))
    safe = Router(score, AtLeastTrue(select, N), TrueOnly(N), plain.routes)
    x = torch.randn(80, D)
    first, second = plain(x).check(), safe(x).check()
    none = first.experts_per_item() == 0
    assert bool(none.any())
    assert bool((second.experts_per_item() >= 1).all())
    assert torch.equal(second.chosen[~none], first.chosen[~none])
    assert torch.equal((second.chosen < N + M).sum(1), (first.chosen < N + M).sum(1))


@pytest.mark.parametrize("inner", [Raw("softmax"), Raw("sigmoid", renormalise=True), Selected(scale=2.0)])
def test_true_only_is_the_inner_part_without_nulls(inner):
    logits = torch.randn(30, N + M)
    chosen = torch.topk(logits, K).indices
    weigh = TrueOnly(N, inner)
    found = weigh(Scores(logits, weigh.probs(logits, None)), chosen)
    alone = logits[:, :N]
    true = chosen.clamp(max=N)
    expected = inner(Scores(alone, inner.probs(alone, None)), true).masked_fill(true == N, 0)
    torch.testing.assert_close(found, expected)
    assert weigh.probs(logits, None).shape == logits.shape


@pytest.mark.parametrize("copied", [False, True])
def test_pinned_nulls_fill_what_k_was_raised_by(copied):
    plain, ours = spread(top_k(D, N, 2)), spread(adamoe(D, N, 5, num_nulls=M, pinned=3, copied=copied))
    assert isinstance(ours.score, WithNulls)
    ours.score.inner.load_state_dict(plain.score.state_dict())
    if copied:
        ours.score.copy_rows(plain.score.weight)
    x = torch.randn(60, D)
    torch.testing.assert_close(ours(x).dense(), plain(x).dense())
    for pinned in (-1, 5, M + 1):
        with pytest.raises(OptionError, match="pin 1 to 4"):
            adamoe(D, N, 5, num_nulls=M, pinned=pinned)


def test_refusals():
    with pytest.raises(OptionError, match="1 to 16"):
        adamoe(D, N, N + M + 1, num_nulls=M)
    with pytest.raises(OptionError, match="num_nulls=-1"):
        adamoe(D, N, K, num_nulls=-1)
    with pytest.raises(OptionError, match="'zero' or 'identity'"):
        adamoe(D, N, K, null="nothing")
    with pytest.raises(OptionError, match="'top_k' or 'top_p'"):
        adamoe(D, N, K, select="top_q")
    with pytest.raises(OptionError, match="min_true=2"):
        adamoe(D, N, K, min_true=2)
    for part in (TrueOnly, lambda n: AtLeastTrue(TopK(1, 2), n)):
        with pytest.raises(OptionError, match="num_true=0"):
            part(0)


def test_an_item_of_nulls_alone_is_mended_by_corrected_scores() -> None:
    router = adamoe(4, 3, 1, num_nulls=2, min_true=1, activation="sigmoid", corrected=True)
    part = correction_of(router.select)
    assert part is not None
    part.copy_(torch.tensor([0.0, 9.0, 0.0, 20.0, 0.0]))
    assert set(router(torch.randn(20, 4)).expert.tolist()) == {1}


@pytest.mark.parametrize("more", [{"select": "top_p"}, {"copied": True}, {"pinned": 1}])
def test_a_correction_needs_nulls_that_compete_by_it(more: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="corrected=True goes with"):
        adamoe(4, 3, 2, num_nulls=3, corrected=True, **more)
