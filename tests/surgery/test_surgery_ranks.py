"""Ranks by worth: within the budget, and no exchange of two steps is better."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.surgery.ranks import MatrixSpectrum, allocate_ranks, whole_rank


def spectra(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        MatrixSpectrum(m, n, torch.rand(min(m, n), generator=generator).sort(descending=True).values, weight)
        for m, n, weight in sizes
    ]


SIZES = st.lists(st.tuples(st.integers(2, 30), st.integers(2, 30), st.floats(0.1, 5)), min_size=1, max_size=6)


@given(sizes=SIZES, room=st.floats(0, 1), multiple=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_within_the_budget(sizes, room, multiple, seed):
    matrices = spectra(sizes, seed)
    least = sum(one.cost(min(multiple, one.m, one.n)) for one in matrices)
    most = sum(one.m * one.n for one in matrices)
    budget = int(least + room * (most - least))
    ranks = allocate_ranks(matrices, budget, multiple)
    assert all(1 <= rank <= min(one.m, one.n) for one, rank in zip(matrices, ranks, strict=True))
    assert sum(one.cost(rank) for one, rank in zip(matrices, ranks, strict=True)) <= budget
    if room == 1:
        assert all(one.cost(rank) == one.m * one.n for one, rank in zip(matrices, ranks, strict=True))


def test_more_where_it_is_worth_more():
    flat, steep = torch.ones(16), torch.tensor([16.0] + [0.0] * 15)
    ranks = allocate_ranks([MatrixSpectrum(16, 16, flat), MatrixSpectrum(16, 16, steep)], 8 * 32)
    assert ranks == [7, 1]
    used, unused = allocate_ranks([MatrixSpectrum(16, 16, flat, 2.0), MatrixSpectrum(16, 16, flat)], 8 * 32)
    assert used > unused


def test_a_matrix_that_would_not_be_smaller_stays_whole():
    one = MatrixSpectrum(4, 4, torch.ones(4))
    assert whole_rank(4, 4) == 2
    assert allocate_ranks([one], 16) == [2]
    assert one.cost(2) == 16


def test_too_little():
    with pytest.raises(OptionError, match="too few"):
        allocate_ranks(spectra([(8, 8, 1.0)], 0), 10)
