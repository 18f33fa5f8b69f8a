"""Top-p and min-p: against plain Python, their guarantees, their edges, and when routes come in."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.ops import min_p, top_p
from coterie.ops.threshold import min_p_entries, top_p_entries

steady = settings(derandomize=True, max_examples=80, deadline=None)
# quarters add up exactly in float32, so that ties of the sum with p are met too
quarters = st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any)


def chosen_sets(chosen: Tensor, num_routes: int) -> list[list[int]]:
    return [[route for route in row if route < num_routes] for row in chosen.tolist()]


def plain_top_p(row: list[int], p: float, strict: bool, k_max: int) -> list[int]:
    """Over whole numbers: the definition, and nothing improbable unless all are asked for."""
    order = sorted(range(len(row)), key=lambda route: (-row[route], route))
    if p >= 1:
        return order[:k_max]
    so_far, taken = 0, []
    for route in order:
        if row[route] == 0:
            break
        taken.append(route)
        so_far += row[route]
        if so_far > p * sum(row) if strict else so_far >= p * sum(row):
            break
    return taken[:k_max]


@steady
@given(quarters, st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0]), st.booleans(), st.integers(1, 6))
def test_top_p_is_its_definition(row: list[int], p: float, strict: bool, k_max: int) -> None:
    cap = min(k_max, len(row))
    chosen, cut = top_p(torch.tensor([row]) / 4, p, strict=strict, k_max=cap)
    assert chosen_sets(chosen, len(row)) == [plain_top_p(row, p, strict, cap)]
    assert cut.tolist() == [len(plain_top_p(row, p, strict, 99)) > cap]


@pytest.mark.parametrize(("items", "routes"), [(40, 5), (300, 64)])
@pytest.mark.parametrize("p", [0.1, 0.4, 0.9, 0.999])
def test_no_fewer_would_do(items: int, routes: int, p: float) -> None:
    probs = torch.softmax(torch.randn(items, routes, generator=torch.Generator().manual_seed(3)) * 2, 1)
    chosen, cut = top_p(probs, p)
    taken = chosen < routes
    mass = probs.gather(1, chosen.clamp(max=routes - 1)).masked_fill(~taken, 0)
    assert bool((mass.sum(1) >= p - 1e-6).all())
    last = mass.gather(1, taken.sum(1, keepdim=True) - 1)[:, 0]
    assert bool((mass.sum(1) - last < p + 1e-6).all())
    assert not bool(cut.any())
    assert int(taken.sum(1).max()) == chosen.shape[1]


@steady
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.sampled_from([(9, 6), (200, 48)]))
def test_a_larger_p_keeps_every_route(seed: int, one: float, other: float, shape: tuple[int, int]) -> None:
    probs = torch.softmax(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), 1)
    small, large = (chosen_sets(top_p(probs, p)[0], shape[1]) for p in sorted((one, other)))
    assert all(set(few) <= set(many) for few, many in zip(small, large, strict=True))


@pytest.mark.parametrize(("p", "count", "strict_count"), [(0.25, 4, 5), (0.4, 7, 7), (0.5, 8, 9)])
def test_an_undecided_router(p: float, count: int, strict_count: int) -> None:
    probs = torch.full((3, 16), 1 / 16)
    assert top_p(probs, p)[0].tolist() == [list(range(count))] * 3
    assert top_p(probs, p, strict=True)[0].shape == (3, strict_count)
    assert (count, strict_count) == (math.ceil(p * 16), math.floor(p * 16) + 1)


def test_all_means_all() -> None:
    """A running sum in float32 passes 1 before the end, and softmax gives exact zeros."""
    logits = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)) * 5
    logits[0, :60] = -300.0
    probs = torch.softmax(logits, 1)
    assert bool((torch.cumsum(probs.sort(descending=True).values, 1)[:, -2] >= 1).any())
    assert top_p(probs, 1.0)[0].sort().values.tolist() == [list(range(64))] * 500
    allowed = torch.arange(64) < 63
    chosen, cut = top_p(probs, 1.0, k_max=62, allowed=allowed.expand(500, 64))
    assert chosen.shape == (500, 62)
    assert bool(cut.all())
    assert not bool(top_p(probs, 1, k_max=63, allowed=allowed.expand(500, 64))[1].any())


def test_sums_of_sigmoids_count_by_their_share() -> None:
    assert top_p(torch.tensor([[0.9, 0.9, 0.1, 0.1]]), 0.5)[0].tolist() == [[0, 1]]
    assert top_p(torch.tensor([[0.9, 0.9, 0.1, 0.1]]) / 7, 0.5)[0].tolist() == [[0, 1]]


def test_truncation_is_counted() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [0.34, 0.33, 0.33]])
    chosen, cut = top_p(probs, 0.7, k_max=1)
    assert chosen.tolist() == [[0], [0], [0]]
    assert cut.tolist() == [True, False, True]
    assert top_p(probs, 0.7, k_max=2)[1].tolist() == [False, False, True]
    assert not bool(top_p(probs, 0.7, k_max=3)[1].any())


def test_large_tables_look_at_few_columns_first() -> None:
    """The same choice whether the first columns were enough for all rows or not."""
    torch.manual_seed(2)
    sharp, flat = torch.randn(256, 64) * 6, torch.randn(256, 64) * 0.1
    probs = torch.softmax(torch.cat([sharp, flat]), 1)
    whole = top_p(probs, 0.6)[0]
    assert whole.shape[1] > 8
    for part in (probs[:256], probs[256:]):
        chosen = top_p(part, 0.6)[0]
        rows = [top_p(row[None], 0.6)[0][0].tolist() for row in part]
        assert chosen_sets(chosen, 64) == rows
    assert chosen_sets(whole, 64) == [top_p(row[None], 0.6)[0][0].tolist() for row in probs]


@steady
@given(quarters, st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(1, 6))
def test_min_p_is_its_definition(row: list[int], ratio: float, k_max: int) -> None:
    cap = min(k_max, len(row))
    order = sorted(range(len(row)), key=lambda route: (-row[route], route))
    near = [route for route in order if row[route] >= ratio * max(row) and (row[route] or ratio == 0)]
    chosen, cut = min_p(torch.tensor([row]) / 4, ratio, k_max=cap)
    assert chosen_sets(chosen, len(row)) == [near[:cap]]
    assert cut.tolist() == [len(near) > cap]


@pytest.mark.parametrize("rule", [top_p, min_p])
def test_nobody_and_nothing(rule) -> None:
    assert rule(torch.empty(0, 4), 0.5)[0].shape == (0, 1)
    assert rule(torch.zeros(2, 4), 0.5)[0].tolist() == [[4], [4]]
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    for setting in (0.0, 0.5, 1.0):
        chosen, cut = rule(torch.full((2, 4), 0.25), setting, allowed=nothing)
        assert chosen.tolist() == [[4]] * 2 or bool((chosen == 4).all())
        assert not bool(cut.any())


@pytest.mark.parametrize("rule", [top_p, min_p])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "0.4", True, None])
def test_settings_out_of_range(rule, value) -> None:
    with pytest.raises(OptionError, match="from 0 to 1"):
        rule(torch.ones(1, 2) / 2, value)


@pytest.mark.parametrize("rule", [top_p, min_p])
@pytest.mark.parametrize("k_max", [0, 3, 1.5, True])
def test_caps_out_of_range(rule, k_max) -> None:
    with pytest.raises(OptionError, match="1 to 2"):
        rule(torch.ones(1, 2) / 2, 0.5, k_max=k_max)


@pytest.mark.parametrize("rule", [top_p, min_p])
@pytest.mark.parametrize("setting", [0.0, 0.5, 1.0])
def test_nan_is_refused(rule, setting: float) -> None:
    with pytest.raises(RoutingError, match="1 of 2 items"):
        rule(torch.tensor([[0.5, 0.5], [0.5, float("nan")]]), setting)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.6, 0.95])
def test_entries_of_top_p_say_who_is_in(p: float) -> None:
    probs = torch.softmax(torch.randn(50, 9, dtype=torch.float64), 1)
    entries, order = top_p_entries(probs)
    counts = (top_p(probs, p)[0] < 9).sum(1)
    assert torch.equal((entries < p).sum(1), counts)
    assert torch.equal(order.sort(dim=1).values, torch.arange(9).expand(50, 9))


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.6, 0.95])
def test_entries_of_min_p_say_who_is_in(ratio: float) -> None:
    probs = torch.softmax(torch.randn(50, 9, dtype=torch.float64), 1)
    assert torch.equal((min_p_entries(probs)[0] >= ratio).sum(1), (min_p(probs, ratio)[0] < 9).sum(1))
