"""Laws of the waist: ragged, empty, null and alias routings, their tables, and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.errors import RoutingError
from coterie.routing import Routing

steady = settings(derandomize=True, max_examples=60, deadline=None)
# sums of a few eighths are exact in float32, so laws can be checked to the bit
WEIGHTS = st.integers(-8, 8).map(lambda n: n / 8)


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """Ragged: items with none, some or all experts; with or without tables."""
    num_experts = draw(st.integers(1, 5))
    rows = draw(st.lists(st.dictionaries(st.integers(0, num_experts - 1), WEIGHTS), max_size=6))
    pairs = [(t, e, row[e]) for t, row in enumerate(rows) for e in sorted(row)]
    item, expert, weight = ([p[n] for p in pairs] for n in range(3))
    facts: dict[str, Any] = {}
    if draw(st.booleans()):
        num_routes, most = num_experts + draw(st.integers(0, 2)), max((len(row) for row in rows), default=0)
        facts = {
            "chosen": torch.randint(0, num_routes + 1, (len(rows), most)),
            "logits": torch.randn(len(rows), num_routes),
            "probs": torch.rand(len(rows), num_routes),
        }
    return Routing(integers(item), integers(expert), torch.tensor(weight).float(), len(rows), num_experts, **facts)


@st.composite
def padded_tables(draw: st.DrawFn) -> tuple[Tensor, Tensor, int, int]:
    """weights [T, K], indices [T, K] with repeats and sentinels, E, the sentinel."""
    num_items, k, num_experts = draw(st.integers(0, 5)), draw(st.integers(0, 4)), draw(st.integers(1, 4))
    sentinel = draw(st.sampled_from([num_experts, num_experts + 3, -1]))
    ids = st.sampled_from([*range(num_experts), sentinel])
    indices = draw(st.lists(ids, min_size=num_items * k, max_size=num_items * k))
    weights = draw(st.lists(WEIGHTS, min_size=num_items * k, max_size=num_items * k))
    shape = (num_items, k)
    return torch.tensor(weights).float().view(shape), integers(indices).view(shape), num_experts, sentinel


def integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def routing_of(item: list[int], expert: list[int], num_items: int, num_experts: int, **facts: Any) -> Routing:
    return Routing(integers(item), integers(expert), torch.ones(len(item)), num_items, num_experts, **facts)


def same(first: Routing, second: Routing) -> bool:
    sizes = (first.num_items, first.num_experts) == (second.num_items, second.num_experts)
    return sizes and all(torch.equal(getattr(first, n), getattr(second, n)) for n in ("item", "expert", "weight"))


@steady
@given(routings(), st.integers(0, 3), st.sampled_from([None, -1, 99]))
def test_padded_and_back_is_the_same(routing: Routing, spare: int, sentinel: int | None) -> None:
    most = int(routing.experts_per_item().max()) if routing.num_items else 0
    weights, indices = routing.padded(most + spare, sentinel)
    assert weights.shape == indices.shape == (routing.num_items, most + spare)
    assert same(Routing.from_padded(weights, indices, routing.num_experts, sentinel=sentinel), routing.check())
    assert routing.padded()[0].shape == (routing.num_items, most)
    if most:
        with pytest.raises(RoutingError, match=f"Pass k={most} or more"):
            routing.padded(most - 1)


@steady
@given(padded_tables())
def test_from_padded_sums_what_it_is_given(tables: tuple[Tensor, Tensor, int, int]) -> None:
    weights, indices, num_experts, sentinel = tables
    routing = Routing.from_padded(weights, indices, num_experts, sentinel=sentinel).check()
    expected, named = torch.zeros(len(weights), num_experts), set()
    for t, (row, ids) in enumerate(zip(weights.tolist(), indices.tolist(), strict=True)):
        for weight, e in zip(row, ids, strict=True):
            if e != sentinel:
                expected[t, e] += weight
                named.add((t, e))
    assert torch.equal(routing.dense(), expected)
    assert set(zip(routing.item.tolist(), routing.expert.tolist(), strict=True)) == named


@steady
@given(routings())
def test_counts_are_row_and_column_sums(routing: Routing) -> None:
    used = torch.zeros(routing.num_items, routing.num_experts, dtype=torch.int64)
    used[routing.item, routing.expert] = 1
    assert torch.equal(routing.experts_per_item(), used.sum(1))
    assert torch.equal(routing.items_per_expert(), used.sum(0))
    assert routing.num_assignments == int(used.sum())
    ranks = [int(used[t, :e].sum()) for t, e in zip(routing.item.tolist(), routing.expert.tolist(), strict=True)]
    assert routing.rank_in_item().tolist() == ranks


@steady
@given(routings(), st.data())
def test_expand_is_indexing_the_dense_table(routing: Routing, data: st.DataObject) -> None:
    index = draw_index(data, routing.num_items)
    grown = routing.expand(index).check()
    assert torch.equal(grown.dense(), routing.dense()[index])
    for name in ("chosen", "logits", "probs"):
        table, grown_table = getattr(routing, name), getattr(grown, name)
        assert grown_table is None if table is None else torch.equal(grown_table, table[index])


@steady
@given(routings(), st.data())
def test_expanding_twice_is_expanding_by_the_composition(routing: Routing, data: st.DataObject) -> None:
    to_sequence = draw_index(data, routing.num_items)
    to_token = draw_index(data, len(to_sequence))
    assert same(routing.expand(to_sequence).expand(to_token), routing.expand(to_sequence[to_token]))


def draw_index(data: st.DataObject, bound: int) -> Tensor:
    return integers(data.draw(st.lists(st.integers(0, bound - 1), max_size=7)) if bound else [])


@steady
@given(routings(), st.data())
def test_masked_items_lose_everything_and_others_nothing(routing: Routing, data: st.DataObject) -> None:
    size = routing.num_items
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)), dtype=torch.bool)
    kept = routing.masked(keep).check()
    assert torch.equal(kept.dense(), routing.dense() * keep[:, None])
    assert torch.equal(kept.experts_per_item(), routing.experts_per_item() * keep)
    if routing.chosen is not None and kept.chosen is not None:
        assert bool((kept.chosen[~keep] == routing.num_routes).all())
        assert torch.equal(kept.chosen[keep], routing.chosen[keep])


@pytest.mark.parametrize("num_items", [0, 3])
@pytest.mark.parametrize("k", [0, 2])
def test_empty(num_items: int, k: int) -> None:
    tables = torch.zeros(num_items, k), torch.full((num_items, k), 4)
    routing = Routing.from_padded(*tables, 4).check()
    assert (routing.num_assignments, routing.num_items) == (0, num_items)
    assert routing.dense().shape == (num_items, 4)
    assert routing.items_per_expert().tolist() == [0, 0, 0, 0]
    assert routing.padded(k)[1].shape == (num_items, k)
    assert routing.masked(torch.zeros(num_items)).expand(integers([0] * min(num_items, 1))).num_assignments == 0


def test_an_alias_is_summed_and_a_null_is_gone() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]], requires_grad=True)
    routing = Routing.from_padded(weights, integers([2, 0, 2, 3, 3, 1]).view(2, 3), 3).check()
    assert routing.item.tolist() == [0, 0, 1]
    assert routing.expert.tolist() == [0, 2, 1]
    assert routing.weight.tolist() == [0.25, 0.75, 0.0]
    (routing.weight * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert weights.grad is not None
    assert weights.grad.tolist() == [[10.0, 1.0, 10.0], [0.0, 0.0, 100.0]]


BRIDGES: dict[str, Callable[[Tensor], Tensor]] = {
    "weight": lambda w: routed(w).weight,
    "dense": lambda w: routed(w).dense(),
    "padded": lambda w: routed(w).padded(3)[0],
    "expand": lambda w: routed(w).expand(integers([2, 0, 0])).weight,
    "masked": lambda w: routed(w).masked(torch.tensor([True, False, True])).dense(),
    "round trip": lambda w: Routing.from_padded(*routed(w).padded(), 3).weight,
}


def routed(weights: Tensor) -> Routing:
    # row 0 names expert 1 twice, row 1 has a null
    return Routing.from_padded(weights, integers([1, 0, 1, 2, 3, 0, 0, 1, 2]).view(3, 3), 3)


@pytest.mark.parametrize("name", BRIDGES)
def test_gradients_flow(name: str) -> None:
    torch.manual_seed(0)
    weights = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(BRIDGES[name], (weights,))
    out = BRIDGES[name](weights)
    assert out.requires_grad
    assert out.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_from_padded_widens(dtype: torch.dtype) -> None:
    routing = Routing.from_padded(torch.ones(1, 1, dtype=dtype), integers([0]).view(1, 1).int(), 1)
    assert (routing.weight.dtype, routing.expert.dtype) == (torch.float32, torch.int64)


@pytest.mark.parametrize(
    ("weights", "indices", "text"),
    [
        (torch.zeros(2, 2), integers([0, 1]).view(2, 1), "alike"),
        (torch.zeros(2), integers([0, 1]), "alike"),
        (torch.zeros(1, 2), integers([0, 4]).view(1, 2), "found 0 to 4"),
        (torch.zeros(1, 2), integers([-1, 2]).view(1, 2), "found -1 to 2"),
    ],
)
def test_from_padded_refuses(weights: Tensor, indices: Tensor, text: str) -> None:
    with pytest.raises(RoutingError, match=text):
        Routing.from_padded(weights, indices, 3)


BROKEN = {
    "item below": (routing_of([-1], [0], 2, 3), r"items must be in \[0, 2\)"),
    "item above": (routing_of([2], [0], 2, 3), r"items must be in \[0, 2\)"),
    "expert below": (routing_of([0], [-1], 2, 3), r"experts must be in \[0, 3\)"),
    "expert above": (routing_of([0], [3], 2, 3), r"experts must be in \[0, 3\)"),
    "items descend": (routing_of([1, 0], [0, 0], 2, 3), "must ascend"),
    "experts descend": (routing_of([0, 0], [1, 0], 2, 3), "must ascend"),
    "expert twice": (routing_of([0, 0], [1, 1], 2, 3), "each pair once"),
    "weight infinite": (replace(routing_of([0], [0], 2, 3), weight=torch.tensor([float("inf")])), "finite"),
    "weight no number": (replace(routing_of([0], [0], 2, 3), weight=torch.tensor([float("nan")])), "finite"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_check_catches(kind: str) -> None:
    routing, text = BROKEN[kind]
    with pytest.raises(RoutingError, match=text):
        routing.check()


def test_check_tells_all_that_is_wrong_and_returns_what_is_right() -> None:
    with pytest.raises(RoutingError, match=r"items must .*; experts must "):
        routing_of([5], [5], 2, 3).check()
    right = routing_of([0, 1, 1], [2, 0, 1], 2, 3)
    assert right.check() is right


ONE = torch.zeros(1)
WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "lengths": (lambda: Routing(integers([0]), integers([0, 1]), ONE, 1, 2), "alike"),
    "two dimensions": (lambda: Routing(*(integers([0]).view(1, 1),) * 2, ONE.view(1, 1), 1, 2), "alike"),
    "item dtype": (lambda: Routing(integers([0]).int(), integers([0]), ONE, 1, 2), "int64"),
    "expert dtype": (lambda: Routing(integers([0]), ONE, ONE, 1, 2), "int64"),
    "weight dtype": (lambda: Routing(integers([0]), integers([0]), ONE.bfloat16(), 1, 2), r"\.float\(\)"),
    "logits rows": (lambda: routing_of([0], [0], 1, 2, logits=torch.zeros(2, 2)), r"logits must be \[T=1"),
    "probs dimensions": (lambda: routing_of([0], [0], 1, 2, probs=ONE), r"probs must be \[T=1"),
    "chosen rows": (lambda: routing_of([0], [0], 1, 2, chosen=integers([])[None].T), r"chosen must be \[T=1"),
    "mask length": (lambda: routing_of([0], [0], 1, 2).masked(torch.ones(2)), r"mask must be \[T=1\]"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_shapes_and_dtypes_are_refused_at_once(kind: str) -> None:
    build, text = WRONG[kind]
    with pytest.raises(RoutingError, match=text):
        build()


def test_the_carry_follows_its_items_where_it_has_a_row_each() -> None:
    carry = torch.arange(6.0).view(3, 2)
    grown = routing_of([0], [0], 3, 2, carry=carry).expand(integers([2, 2]))
    assert grown.carry is not None
    assert grown.carry.tolist() == [[4.0, 5.0], [4.0, 5.0]]
    state = torch.zeros(4, 2)
    assert routing_of([0], [0], 3, 2, carry=state).expand(integers([2])).carry is state


def test_routes_are_counted_by_the_tables() -> None:
    assert routing_of([0], [0], 1, 2).num_routes == 2
    assert routing_of([0], [0], 1, 2, probs=torch.zeros(1, 5)).num_routes == 5
    assert routing_of([0], [0], 1, 2, logits=torch.zeros(1, 4)).num_routes == 4


def test_detach_keeps_the_decision_only() -> None:
    weights = torch.ones(1, 1, requires_grad=True)
    facts = {"logits": weights * 2, "probs": weights * 3, "losses": {"own": weights.sum()}, "carry": weights}
    kept = Routing.from_padded(weights, integers([0]).view(1, 1), 1, **facts).detach()
    assert not any(t.requires_grad for t in (kept.weight, kept.logits, kept.probs) if t is not None)
    assert (kept.weight.item(), kept.logits.item(), kept.probs.item()) == (1.0, 2.0, 3.0)
    assert (kept.losses, kept.carry) == ({}, None)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        routing_of([0], [0], 1, 2).num_items = 3  # type: ignore[misc]
