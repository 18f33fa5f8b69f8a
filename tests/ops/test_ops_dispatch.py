"""Rows out and rows back: fast against plain, in values, gradients and bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from coterie.errors import RoutingError
from coterie.ops.dispatch import combine, combine_reference, dispatch, group_by_expert
from coterie.routing import Routing

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


def routing_of(experts_of: list[list[int]], num_experts: int = 6, dtype: torch.dtype = torch.float32) -> Routing:
    """Items with the given experts and random weights that want a gradient."""
    item = torch.tensor([t for t, row in enumerate(experts_of) for _ in row], dtype=torch.int64)
    expert = torch.tensor([e for row in experts_of for e in sorted(row)], dtype=torch.int64)
    weight = torch.rand(len(item), dtype=dtype).requires_grad_()
    return Routing(item, expert, weight, len(experts_of), num_experts).check()


ROUTINGS = {
    "uniform": [[0, 2], [1, 5], [0, 1], [2, 5]],
    "one item": [[0, 1, 2, 3, 4, 5]],
    "ragged": [[3], [], [0, 1, 2, 3, 4, 5], [1, 4], []],
    "divisible but ragged": [[0, 1, 2], [3], [], [0, 4], [1, 3, 4, 5]],
    "no assignment": [[], []],
    "no item": [],
}
everywhere = pytest.mark.parametrize("experts_of", ROUTINGS.values(), ids=ROUTINGS)
in_every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def near(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_groups_ascend_by_expert_then_item():
    groups = group_by_expert(routing_of([[3, 0], [3], [0, 5], []]))
    assert groups.counts.tolist() == [2, 0, 0, 2, 0, 1]
    assert groups.order.tolist() == [0, 3, 1, 2, 4]
    assert [(e, p.tolist()) for e, p in groups.hit()] == [(0, [0, 3]), (3, [1, 2]), (5, [4])]


def test_groups_of_nothing():
    groups = group_by_expert(routing_of([[], []]))
    assert groups.counts.tolist() == [0] * 6
    assert list(groups.hit()) == []


@everywhere
@in_every_dtype
def test_dispatch_copies_rows_and_sums_gradients(experts_of, dtype):
    routing = routing_of(experts_of)
    x = torch.randn(len(experts_of), 3, 2, dtype=dtype, requires_grad=True)
    sent = dispatch(x, routing)
    assert torch.equal(sent, x[routing.item])
    mix = torch.randn_like(sent)
    (found,) = torch.autograd.grad(sent, x, mix)
    expected = torch.zeros(x.shape, dtype=torch.float64).index_add(0, routing.item, mix.double())
    near(found, expected.to(dtype))


@everywhere
@in_every_dtype
@pytest.mark.parametrize("tail", [(), (4,), (2, 3, 1)], ids=str)
def test_combine_agrees_with_reference(experts_of, dtype, tail):
    routing = routing_of(experts_of)
    rows = torch.randn(routing.num_assignments, *tail, dtype=dtype, requires_grad=True)
    found, expected = combine(rows, routing), combine_reference(rows, routing)
    assert found.shape == (len(experts_of), *tail)
    near(found, expected)
    with torch.no_grad():
        assert torch.equal(combine(rows, routing), found)
    mix = torch.randn_like(found)
    if routing.num_assignments:
        for mine, theirs in zip(
            torch.autograd.grad(found, (rows, routing.weight), mix),
            torch.autograd.grad(expected, (rows, routing.weight), mix),
            strict=True,
        ):
            assert mine.dtype == theirs.dtype
            near(mine, theirs)


@everywhere
@in_every_dtype
@pytest.mark.parametrize("cached", [1, 10, 2**20])
def test_rows_gathered_by_expert_give_the_same_bits(experts_of, dtype, cached, monkeypatch):
    """Forward and backward, with the work cut into pieces of any size."""
    routing = routing_of(experts_of)
    groups = group_by_expert(routing)
    x = torch.randn(len(experts_of), 7, dtype=dtype, requires_grad=True)
    expected = combine(dispatch(x, routing), routing)
    mix = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, (x, routing.weight), mix)
    monkeypatch.setattr("coterie.ops.dispatch._CACHED", cached)
    sent = dispatch(x, routing, groups)
    assert torch.equal(sent, x[routing.item][groups.order])
    assert torch.equal(sent.detach()[groups.place], x[routing.item])
    for own in (None, groups):
        found = combine(dispatch(x, routing, own), routing, own)
        assert torch.equal(found, expected)
        for mine, theirs in zip(torch.autograd.grad(found, (x, routing.weight), mix), wanted, strict=True):
            assert torch.equal(mine, theirs)


def test_gradients_are_the_derivative_twice():
    """Against finite differences, first and second derivative, in float64."""
    routing = routing_of([[0, 2], [], [1, 2, 5]], dtype=torch.float64)
    rows = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def through_both(x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        own = Routing(routing.item, routing.expert, weight, 3, 6)
        return combine(dispatch(x, own) * rows, own)

    def gathered(x: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
        own = Routing(routing.item, routing.expert, weight, 3, 6)
        groups = group_by_expert(own)
        return combine(dispatch(x, own, groups) * rows, own, groups)

    inputs = (x, rows, routing.weight)
    for run in (through_both, gathered):
        assert torch.autograd.gradcheck(run, inputs)
        assert torch.autograd.gradgradcheck(run, inputs)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_items_bits_are_its_own(data):
    """Alone, among others, in a uniform or a ragged crowd: the same sum to the bit."""
    experts = st.sets(st.integers(0, 5)).map(list)
    experts_of = data.draw(st.lists(experts, min_size=1, max_size=6))
    dtype = data.draw(st.sampled_from(DTYPES))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    routing = routing_of(experts_of)
    rows = torch.randn(routing.num_assignments, 7).to(dtype)
    rows[torch.rand(rows.shape) < 0.1] = -0.0
    whole = combine(rows, routing)
    for t in range(len(experts_of)):
        alone = routing.expand(torch.tensor([t]))
        expected = combine(rows[routing.item == t], alone)[0]
        assert torch.equal(whole[t], expected)
        assert torch.equal(whole[t].signbit(), expected.signbit())


@pytest.mark.parametrize("num_items", [1, 3])
def test_bits_do_not_depend_on_who_finished_first(num_items):
    """Experts may finish in any order: each writes its rows to their place, and the sum is the same."""
    routing = routing_of([[0, 1, 4, 5]] * num_items)
    rows = torch.randn(routing.num_assignments, 33)
    expected = combine(rows, routing)
    hit = list(group_by_expert(routing).hit())
    for order in ([3, 1, 0, 2], [2, 3, 1, 0]):
        written = torch.empty_like(rows)
        for place in order:
            positions = hit[place][1]
            written[positions] = rows[positions]
        assert torch.equal(combine(written, routing), expected)


def test_bfloat16_is_summed_in_float32():
    """64 terms of 1 + 2^-6: bfloat16 sums would stop growing by the right step at 2."""
    routing = routing_of([list(range(64))], num_experts=64)
    routing = Routing(routing.item, routing.expert, torch.ones(64), 1, 64)
    rows = torch.full((64, 1), 1 + 2**-6, dtype=torch.bfloat16)
    assert combine(rows, routing).item() == 65.0
    x = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    dispatch(x, routing).backward(rows)
    assert x.grad is not None
    assert x.grad.item() == 65.0


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("batched_mm", dtype) for dtype in DTYPES] + [("grouped_mm", torch.float32), ("grouped_mm", torch.bfloat16)],
)
def test_combine_agrees_with_transformers(name, dtype):
    """Their reduction behind identity-like experts, whose rows are known."""

    class Block(torch.nn.Module):
        num_experts, has_gate, has_bias, is_transposed, has_post_expert_norm = 6, False, False, True, False
        _is_expert_parallel = False
        act_fn = torch.nn.Identity()

    block = Block()
    block.up_proj = block.down_proj = torch.eye(8, dtype=dtype).expand(6, 8, 8).contiguous()
    x, weights = torch.randn(5, 8, dtype=dtype), torch.rand(5, 3)
    indices = torch.stack([torch.randperm(6)[:3] for _ in range(5)])
    expected = ALL_EXPERTS_FUNCTIONS[name](block, x, indices, weights)
    routing = Routing.from_padded(weights, indices, 6)
    near(combine(dispatch(x, routing), routing), expected)


def test_wrong_sizes_are_refused():
    routing = routing_of([[0], [1]])
    with pytest.raises(RoutingError, match=r"S=2.*\(3, 4\)"):
        combine(torch.zeros(3, 4), routing)
    with pytest.raises(RoutingError, match=r"T=2.*\(3, 4\)"):
        dispatch(torch.zeros(3, 4), routing)
