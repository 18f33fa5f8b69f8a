"""Limited places: who keeps one, how many there are, and whom a route takes when it may choose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError, RoutingError
from coterie.ops import best_items, corrected, places_per_route, route_load, top_k, within_capacity
from coterie.ops.capacity import check_factor

steady = settings(derandomize=True, max_examples=80, deadline=None)
places = st.integers(0, 3)


@st.composite
def choices(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """chosen [T, 2] of 4 routes (4 is empty) and priorities, ties among them."""
    num_items = draw(st.integers(0, 8))
    rows = [draw(st.permutations(range(5)))[:2] for _ in range(num_items)]
    level = st.sampled_from([0.0, 0.25, 0.5, 1.0])
    ranks = [[draw(level), draw(level)] for _ in range(num_items)]
    return torch.tensor(rows, dtype=torch.int64).view(num_items, 2), torch.tensor(ranks).view(num_items, 2)


@steady
@given(choices(), places)
def test_capacity_is_its_definition(case: tuple[torch.Tensor, torch.Tensor], count: int) -> None:
    chosen, priority = case
    for ranks in (None, priority):
        kept = within_capacity(chosen, ranks, count, 4)
        queue = [(t, j) for t in range(len(chosen)) for j in range(2)]
        if ranks is not None:
            queue.sort(key=lambda place: -float(ranks[place]))
        left = [count] * 4 + [0]
        for place in queue:
            route = int(chosen[place])
            assert bool(kept[place]) == (left[route] > 0)
            left[route] -= 1


def test_places_differ_by_route() -> None:
    chosen = torch.tensor([[0, 1], [0, 1], [1, 0]])
    kept = within_capacity(chosen, None, torch.tensor([1, 2]), 2)
    assert kept.tolist() == [[True, True], [False, True], [False, False]]


@pytest.mark.parametrize(("factor", "expected"), [(1.0, 2), (1.1, 3), (1.5, 3), (0.5, 1), (0.01, 1)])
def test_places_per_route(factor: float, expected: int) -> None:
    chosen = torch.tensor([[0, 1], [2, 3], [0, 2], [3, 4]])  # 7 of 4 routes, one empty
    chosen = torch.cat([chosen, torch.tensor([[1, 4]])])
    assert int(places_per_route(chosen, factor, 4)) == expected
    assert int(places_per_route(torch.full((3, 2), 4), factor, 4)) == 0


@steady
@given(st.integers(0, 2**31), st.integers(0, 7), st.integers(0, 9))
def test_expert_choice_is_its_definition(seed: int, num_items: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.randint(4, (num_items, 3), generator=generator) / 4
    allowed = torch.rand(num_items, 3, generator=generator) < 0.7
    chosen = best_items(probs, count, allowed)
    expected: list[list[int]] = [[] for _ in range(num_items)]
    for route in range(3):
        able = [t for t in range(num_items) if allowed[t, route]]
        for t in sorted(able, key=lambda t: (-float(probs[t, route]), t))[:count]:
            expected[t].append(route)
    for t, routes in enumerate(expected):
        routes.sort(key=lambda route: (-float(probs[t, route]), route))
        assert [route for route in chosen[t].tolist() if route < 3] == routes
    assert chosen.shape == (num_items, max([1, *map(len, expected)]))


def test_expert_choice_refuses_nan() -> None:
    with pytest.raises(RoutingError, match="NaN"):
        best_items(torch.tensor([[0.5, float("nan")]]), 1)


@pytest.mark.parametrize("factor", [0, -1.0, float("inf"), float("nan"), "1", True])
def test_factors_out_of_range(factor: object) -> None:
    with pytest.raises(OptionError, match="a number above 0"):
        check_factor("capacity", factor)


def test_the_correction_follows_the_load() -> None:
    load = route_load(torch.tensor([[0, 1], [0, 3], [0, 1]]), 3)
    assert load.tolist() == [3, 2, 0]
    moved = corrected(torch.tensor([0.1, 0.2, 0.3]), load, rate=0.01)
    torch.testing.assert_close(moved, torch.tensor([0.09, 0.19, 0.31]))
    even = torch.tensor([0.1, 0.2])
    assert torch.equal(corrected(even, torch.tensor([4, 4])), even)


def test_the_correction_evens_the_load_out() -> None:
    torch.manual_seed(0)
    probs = torch.softmax(torch.randn(600, 6) + torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, -2.0]), 1)
    correction = torch.zeros(6)
    before = route_load(top_k(probs, 2), 6)
    for _ in range(400):
        correction = corrected(correction, route_load(top_k(probs + correction, 2), 6), rate=2e-3)
    after = route_load(top_k(probs + correction, 2), 6)
    assert int(before.max()) > 2 * 200
    assert int(after.max()) < 1.15 * 200
    assert int(after.min()) > 0.85 * 200
