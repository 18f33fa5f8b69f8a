"""Upgrades of a trained router: on the first day the layer computes what it did."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from coterie.errors import OptionError
from coterie.experts import FFN, FFNShape
from coterie.layers import MoE
from coterie.ops import switch_balance
from coterie.routers import (
    Router,
    adamoe,
    add_nulls,
    add_recurrence,
    hash_routing,
    rmoe,
    sigmoid_bias,
    smoe_dropout,
    top_k,
)
from coterie.routers.score import Blend, WithNulls
from coterie.routing import RouteContext

D, N, T = 16, 8, 300

SOURCES = {
    "mixtral": lambda: top_k(D, N, 2),
    "olmoe": lambda: top_k(D, N, 3, renormalise=False),
    "qwen3": lambda: top_k(D, N, 2, rounded=True),
    "gpt-oss": lambda: top_k(D, N, 2, softmax="after", bias=True),
    "float32": lambda: top_k(D, N, 1, float32=True),
    "frozen": lambda: smoe_dropout(D, N, 2, output_scale=3.0),
}


def trained(name: str) -> Router:
    router = SOURCES[name]()
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(std=0.5)
    return router


def upgraded(router: Router, how: str) -> Router:
    k = router.select.k
    if how == "copied":
        return add_nulls(router, N, 2 * k)
    if how == "copied twice":
        return add_nulls(router, 2 * N, 3 * k)
    return add_nulls(router, 12, k + 5, start="pinned")


@pytest.mark.parametrize("how", ["copied", "copied twice", "pinned"])
@pytest.mark.parametrize("name", SOURCES)
def test_nulls_start_exactly_where_the_source_was(name, how):
    source = trained(name)
    router = upgraded(source, how)
    experts = FFN(N, FFNShape(D, 8))
    x = torch.randn(T, D)
    before, after = source(x), router(x).check()
    assert torch.equal(after.item, before.item)
    assert torch.equal(after.expert, before.expert)
    torch.testing.assert_close(after.weight, before.weight, atol=1e-6, rtol=1e-6)
    y, z = MoE(source, experts)(x), MoE(router, experts)(x)
    torch.testing.assert_close(z, y, atol=1e-6, rtol=1e-5)
    assert after.chosen.shape[1] > source.select.k
    assert router.routes.num_nulls == after.num_routes - N


@pytest.mark.parametrize("how", ["copied", "copied twice", "pinned"])
def test_in_bfloat16_too_and_where_experts_tie(how):
    source = trained("qwen3").bfloat16()
    with torch.no_grad():
        source.score.weight.mul_(2).round_()
    x = torch.randn(T, D).round().bfloat16()
    ordered = source(x).logits.float().sort(dim=1, descending=True).values
    assert bool((ordered[:, 1] == ordered[:, 2]).any()), "equal experts at the border are what this is about"
    router = upgraded(source, how)
    assert router.score.null_rows.dtype == torch.bfloat16
    assert torch.equal(source(x).dense(), router(x).dense())


def test_the_source_stays_as_it_was_and_apart():
    source = trained("mixtral").eval()
    state = copy.deepcopy(source.state_dict())
    router = add_nulls(source, N, 4)
    assert not router.training
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.zero_()
    assert all(torch.equal(value, state[name]) for name, value in source.state_dict().items())


def test_pinned_nulls_can_be_let_go():
    router = add_nulls(trained("mixtral"), N, 3, start="pinned", offset=20.0)
    assert isinstance(router.score, WithNulls)
    assert router.score.offset.tolist() == [20.0] + [-20.0] * (N - 1)
    x = torch.randn(T, D)
    routing = router(x)
    assert routing.experts_per_item().tolist() == [2] * T
    assert bool(torch.isfinite(switch_balance(routing, num_nulls=N)))
    router.score.offset.mul_(0)
    with torch.no_grad():
        router.score.null_rows.normal_(std=0.5)  # copies would tie, and ties go to the true expert
    assert set(router(x).experts_per_item().tolist()) > {2}
    fresh = adamoe(D, N, 3, num_nulls=N)
    fresh.load_state_dict(router.state_dict())
    torch.testing.assert_close(fresh(x).dense(), router(x).dense())


@pytest.mark.parametrize(("nulls", "k", "true"), [(8, 3, 2), (16, 3, 1), (8, 2, 1), (8, 4, 2)])
def test_a_copied_start_has_as_many_true_experts_as_ties_allow(nulls, k, true):
    counts = add_nulls(top_k(D, N, 2), nulls, k)(torch.randn(2000, D)).experts_per_item().float()
    assert float(counts.mean()) == pytest.approx(true, abs=0.01)


@pytest.mark.parametrize("name", [*SOURCES, "sigmoid"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recurrence_starts_with_the_same_bits(name, dtype):
    source = (sigmoid_bias(D, N, 2) if name == "sigmoid" else trained(name)).to(dtype)
    first = add_recurrence(source, state=6)
    second = add_recurrence(source, state=6, follow=first)
    x = torch.randn(T, D).to(dtype)
    one = first(x)
    two = second(x, RouteContext(carry=one.carry))
    for found in (one, two):
        expected = source(x)
        assert torch.equal(found.logits, expected.logits)
        assert found.logits.dtype == expected.logits.dtype
        assert torch.equal(found.chosen, expected.chosen)
        assert torch.equal(found.weight, expected.weight)
        assert found.carry.shape == (T, 6)


def test_a_recipe_can_keep_the_linear_router():
    source = trained("olmoe")
    ours = rmoe(D, N, 3, state=6, keep_linear=True, renormalise=False)
    ours.score.base.load_state_dict(source.score.state_dict())
    x = torch.randn(T, D)
    assert torch.equal(ours(x).logits, source(x).logits)
    assert torch.equal(ours(x).weight, source(x).weight)
    second = rmoe(D, N, 3, state=6, keep_linear=True, follow=ours)
    assert second.score.extra.recurrence is ours.score.extra.recurrence


def test_recurrence_learns_from_there():
    source = trained("mixtral")
    routers = nn.ModuleList([add_recurrence(source, state=6)])
    routers.append(add_recurrence(source, state=6, follow=routers[0]))
    assert [n for n in routers.state_dict() if "weight_ih" in n] == ["0.score.extra.recurrence.cell.weight_ih"]
    assert isinstance(routers[1].score, Blend)
    optimizer = torch.optim.SGD(routers.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        x = torch.randn(T, D)
        carry = routers[0](x).carry
        routers[1](x, RouteContext(carry=carry)).weight.square().sum().backward()
        optimizer.step()
    assert bool(routers[1].score.gamma.detach() != 0)
    assert bool(routers[0].score.extra.projector.grad.any())  # through the carry, into the layer before


def test_what_cannot_be_upgraded():
    plain = top_k(D, N, 2)
    for router in (sigmoid_bias(D, N, 2), adamoe(D, N, 3)):
        with pytest.raises(OptionError, match="k best logits"):
            add_nulls(router, N, 4)
    with pytest.raises(OptionError, match="HashScore has none"):
        add_nulls(hash_routing(10, N), N, 2)
    with pytest.raises(OptionError, match="'copied' or 'pinned'"):
        add_nulls(plain, N, 4, start="nailed")
    with pytest.raises(OptionError, match="num_nulls=0"):
        add_nulls(plain, 0, 2)
    with pytest.raises(OptionError, match="1 to 16"):
        add_nulls(plain, N, 17)
    for k in (1, 6):
        with pytest.raises(OptionError, match="k=2 to 5"):
            add_nulls(plain, 3, k, start="pinned")
    with pytest.raises(OptionError, match="HashScore"):
        add_recurrence(hash_routing(10, N))
    with pytest.raises(OptionError, match="carries"):
        add_recurrence(rmoe(D, N, 2))
    with pytest.raises(OptionError, match="cannot follow"):
        add_recurrence(plain, follow=plain)
