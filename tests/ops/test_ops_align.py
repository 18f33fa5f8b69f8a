"""Neurons matched and moved: the function stays, the match is the best, permuted experts are found out."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import MissingExtraError, OptionError
from coterie.experts import FFNShape, expert_forward
from coterie.ops.align import activation_rows, align, match_rows, neuron_rows, permute_neurons
from coterie.ops.matching import greedy_match

SHAPES = st.builds(
    FFNShape, width=st.integers(1, 6), inner=st.integers(1, 9), gated=st.booleans(), bias=st.booleans(),
    fused=st.just(False),
)  # fmt: skip


def drawn(shape, generator):
    return {name: torch.randn(size, generator=generator) for name, size in shape.weight_shapes().items()}


@given(SHAPES, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_aligning_leaves_the_function_and_brings_neurons_together(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    reference, target = drawn(shape, generator), drawn(shape, generator)
    x = torch.randn(5, shape.width, generator=generator)
    moved = align(reference, target)
    torch.testing.assert_close(expert_forward(x, moved, shape), expert_forward(x, target, shape), rtol=1e-5, atol=1e-6)
    before, after = (float((neuron_rows(reference) * neuron_rows(each)).sum()) for each in (target, moved))
    assert after >= before - 1e-4
    assert set(moved) == set(target)
    if not shape.bias:
        assert not [name for name in moved if name.endswith("_bias")]


@given(SHAPES, st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_a_permuted_expert_is_put_back_bit_for_bit(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    expert = drawn(shape, generator)
    other = permute_neurons(expert, torch.randperm(shape.inner, generator=generator))
    moved = align(expert, other)
    assert all(torch.equal(moved[name], expert[name]) for name in expert)


def test_the_match_is_the_best_of_all():
    reference, target = torch.randn(5, 3), torch.randn(5, 3)
    scores = reference @ target.T
    best = max(sum(scores[i, p] for i, p in enumerate(order)) for order in itertools.permutations(range(5)))
    found = match_rows(reference, target)
    assert sorted(found.tolist()) == list(range(5))
    assert float(scores[torch.arange(5), found].sum()) == pytest.approx(float(best))


def test_ties_leave_the_target_as_it_is():
    reference = torch.ones(4, 2)
    assert match_rows(reference, 2 * torch.ones(4, 2)).tolist() == [0, 1, 2, 3]
    assert match_rows(reference, reference.clone()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("block", [8, 16, 1024])
def test_many_neurons_are_matched_block_by_block(block):
    from coterie.ops.align import _best

    reference = torch.randn(70, 12)
    order = torch.randperm(70)
    found = greedy_match(reference, reference[order], _best, block=block)
    assert torch.equal(order[found], torch.arange(70))  # a permuted copy is found out
    noisy = torch.randn(70, 12)
    found = greedy_match(reference, noisy, _best, block=block)
    assert sorted(found.tolist()) == list(range(70))
    best = (reference * noisy[match_rows(reference, noisy)]).sum()
    assert 0.75 * best < (reference * noisy[found]).sum() <= best + 1e-3


def test_inexact_matching_never_makes_it_worse():
    reference = torch.randn(40, 4)
    target = reference + 0.01 * torch.randn(40, 4)
    found = match_rows(reference, target, exact=False)
    assert (reference * target[found]).sum() >= (reference * target).sum()


def test_activations_find_what_weights_hide():
    """Neurons scaled by unlike factors still say the same in other words."""
    features = torch.randn(50, 7)
    order = torch.randperm(7)
    other = features[:, order] * torch.rand(7).add(0.5) + 3.0
    found = match_rows(activation_rows(features), activation_rows(other))
    assert torch.equal(order[found], torch.arange(7))


def test_a_silent_neuron_correlates_with_none():
    features = torch.randn(20, 3)
    features[:, 1] = 4.0
    rows = activation_rows(features)
    assert torch.isfinite(rows).all()
    assert rows[1].abs().max() == 0
    torch.testing.assert_close((rows @ rows.T).diagonal(), torch.tensor([1.0, 0.0, 1.0]))


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(OptionError, match="4x3 cannot be matched with neurons of 5x3"):
        match_rows(torch.zeros(4, 3), torch.zeros(5, 3))
    with pytest.raises(OptionError, match="not finite"):
        match_rows(torch.randn(2, 2), torch.full((2, 2), torch.nan))


def test_scipy_is_asked_for_where_it_is_missing(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingExtraError, match=r"coterie\[surgery\]"):
        match_rows(torch.randn(3, 2), torch.randn(3, 2))
