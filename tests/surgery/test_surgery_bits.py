"""The integer program of bits: never above the budget, never worse than any other choice."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.surgery.bits import choose

ITEM = st.lists(st.tuples(st.integers(0, 12), st.floats(0, 10)), min_size=1, max_size=3)


@given(items=st.lists(ITEM, min_size=1, max_size=5), more=st.integers(0, 20))
@settings(max_examples=150, deadline=None)
def test_nothing_is_better(items, more):
    costs = [[cost for cost, _ in item] for item in items]
    losses = [[loss for _, loss in item] for item in items]
    budget = sum(map(min, costs)) + more
    found = choose(costs, losses, budget)
    assert found.cost == sum(cost[o] for cost, o in zip(costs, found.picked, strict=True)) <= budget
    every = [
        sum(loss[o] for loss, o in zip(losses, picks, strict=True))
        for picks in product(*(range(len(cost)) for cost in costs))
        if sum(cost[o] for cost, o in zip(costs, picks, strict=True)) <= budget
    ]
    assert found.loss == pytest.approx(min(every), abs=1e-9)
    assert found.bound <= min(every) + 1e-9


def test_too_large_for_the_exact_program_tells_its_gap(monkeypatch):
    monkeypatch.setattr("coterie.surgery.bits._LARGEST", 0)
    found = choose([[0, 6], [0, 5], [0, 5]], [[10, 0], [8, 0], [8, 0]], 10)
    assert not found.optimal
    assert found.bound <= 10 <= found.loss


def test_a_budget_below_everything():
    with pytest.raises(OptionError, match="least that is possible is 5"):
        choose([[2, 4], [3, 9]], [[1, 0], [1, 0]], 4)
