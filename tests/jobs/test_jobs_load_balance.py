"""The numbers of a load, on loads whose numbers are known."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.jobs.tracing.load_balance import difference, site_uses
from coterie.routing import RoutePlan, Routing


def use_of(experts, num_experts, sequence=None, weights=None, mask=None):
    """The use of a plan in which item t goes to ``experts[t]``."""
    indices = torch.tensor(experts)
    weights = torch.ones(indices.shape) if weights is None else torch.tensor(weights)
    sequence = torch.zeros(len(experts), dtype=torch.int64) if sequence is None else torch.tensor(sequence)
    position = torch.cat([torch.arange(int(n)) for n in sequence.unique_consecutive(return_counts=True)[1]])
    routing = Routing.from_padded(weights, indices, num_experts)
    [use] = site_uses(RoutePlan({"a": routing}, sequence, position, mask), {"a": 4})
    return use


def test_an_even_load():
    use = use_of([[0, 1], [2, 3]], 4)
    assert use.load.tolist() == [1, 1, 1, 1]
    assert (use.cv, use.peak, use.dead) == (0, 1, 0)
    assert use.effective == pytest.approx(4)
    assert use.shares.tolist() == [0.5] * 4
    assert use.layer == 4


def test_everybody_goes_to_one():
    use = use_of([[2]] * 5, 8)
    assert use.load.tolist() == [0, 0, 5, 0, 0, 0, 0, 0]
    assert (use.dead, use.peak) == (7, 8)
    assert use.effective == pytest.approx(1)
    assert use.cv == pytest.approx(math.sqrt(7))
    assert use.locality == use.locality_by_chance == 1


def test_locality_counts_experts_kept_within_a_sequence():
    use = use_of([[0, 1], [1, 2], [3, 4], [4, 3]], 5, sequence=[0, 0, 1, 1])
    assert use.locality == pytest.approx((1 + 2) / 4)


def test_confidence_is_the_share_of_the_largest_weight():
    assert use_of([[0, 1]], 2, weights=[[3.0, 1.0]]).confidence == pytest.approx(0.75)


def test_padding_is_not_counted():
    use = use_of([[0], [1], [1]], 2, mask=torch.tensor([False, True, True]))
    assert (use.load.tolist(), use.tokens, use.locality) == ([0, 2], 2, 1)


def test_uses_add_up():
    both = use_of([[0], [1]], 2) + use_of([[1], [1]], 2)
    assert (both.load.tolist(), both.tokens, both.locality) == ([1, 3], 4, 0.5)


def test_halves_are_every_other_stretch():
    long = use_of(([[0]] * 64 + [[1]] * 64) * 4 + [[0]] * 3, 2)
    assert long.halves.tolist() == [[4 * 64 + 3, 0], [0, 4 * 64]]
    assert use_of([[0], [1]] * 8, 2).halves.tolist() == [[4, 4], [4, 4]]
    assert use_of([[0], [1]], 2).halves.tolist() == [[1, 0], [0, 1]]


def test_difference():
    assert difference(torch.tensor([2, 0]), torch.tensor([0, 7])) == 1
    assert difference(torch.tensor([1, 1]), torch.tensor([5, 5])) == 0
    assert difference(torch.tensor([3, 1]), torch.tensor([1, 1])) == pytest.approx(0.25)


@given(st.lists(st.lists(st.integers(0, 6), min_size=2, max_size=2, unique=True), min_size=1, max_size=40))
def test_bounds(experts):
    use = use_of(experts, 7)
    assert 1 - 1e-9 <= use.effective <= 7 + 1e-9
    assert use.peak >= 1
    assert 0 <= use.locality <= 1
    assert 0 < use.locality_by_chance <= 1
    assert int(use.load.sum()) == 2 * len(experts)
    assert 0.5 - 1e-9 <= use.confidence <= 1
    json_numbers = use.as_record()
    assert json_numbers["load"] == use.load.tolist()
    assert all(math.isfinite(value) for value in json_numbers.values() if isinstance(value, float))
