"""Products of thin matrices: exact at full rank, best below it, best on what comes in; and what they cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.ops.lowrank import factored_parameters, low_rank, paying_rank, residual, spectrum, stable_rank

SIDES = st.integers(1, 12)


def drawn(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@given(m=SIDES, n=SIDES, seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_full_rank_is_the_matrix(m, n, seed):
    weight = drawn(m, n, seed)
    up, down = low_rank(weight, min(m, n))
    assert torch.allclose(up @ down, weight, atol=1e-5)


@given(m=SIDES, n=SIDES, rank=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_what_is_missed_is_the_tail_of_the_spectrum(m, n, rank, seed):
    weight, rank = drawn(m, n, seed), min(rank, m, n)
    up, down = low_rank(weight, rank)
    assert up.shape == (m, rank)
    assert down.shape == (rank, n)
    rest = residual(weight, up, down)
    assert torch.equal(rest + 0, residual(weight, up, down))
    assert torch.allclose(up @ down + rest, weight, atol=1e-6)
    assert float(rest.square().sum()) == pytest.approx(float(spectrum(weight)[rank:].sum()), abs=1e-4)


@given(n=SIDES, rank=st.integers(1, 12), seed=st.integers(0, 999))
@example(n=8, rank=8, seed=527)  # full rank: only rounding is missed
@settings(max_examples=30, deadline=None)
def test_with_moments_no_product_is_heard_less(n, rank, seed):
    """The weighed product misses no more of the outputs than the plain one, by diagonal and by full moments."""
    weight, x = drawn(8, n, seed), drawn(40, n, seed + 1) * torch.arange(1, n + 1)
    rank = min(rank, 8, n)
    plain = residual(weight, *low_rank(weight, rank))
    heard = residual(weight, *low_rank(weight, rank, x.T @ x / len(x)))
    assert float((x @ heard.T).norm()) <= float((x @ plain.T).norm()) * 1.01 + 1e-4


def test_moments_of_equal_inputs_change_nothing():
    weight = drawn(6, 9)
    for moments in (torch.ones(9), torch.eye(9)):
        up, down = low_rank(weight, 3, moments)
        assert torch.allclose(up @ down, torch.matmul(*low_rank(weight, 3)), atol=1e-4)


def test_large_matrices_are_nearly_as_good():
    """Subspace iteration, as used from 1025 on, against the spectrum."""
    weight = drawn(1100, 1100) @ torch.diag(torch.linspace(1, 0.01, 1100))
    before = torch.random.get_rng_state()
    rest = residual(weight, *low_rank(weight, 16))
    assert torch.equal(before, torch.random.get_rng_state())
    best = float(spectrum(weight)[16:].sum())
    assert best * (1 - 1e-4) <= float(rest.square().sum()) <= 1.005 * best


def test_stable_rank():
    assert stable_rank(torch.eye(5)) == pytest.approx(5)
    assert stable_rank(torch.ones(4, 6)) == pytest.approx(1)
    assert stable_rank(torch.zeros(3, 3)) == 0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: low_rank(torch.ones(3, 4), 4), "ranks from 1 to 3"),
        (lambda: low_rank(torch.ones(3, 4), 0), "ranks from 1 to 3"),
        (lambda: low_rank(torch.full((3, 4), float("nan")), 1), "not finite"),
        (lambda: low_rank(torch.ones(3), 1), "matrices"),
        (lambda: low_rank(torch.ones(3, 4), 1, torch.ones(3)), "moments"),
        (lambda: factored_parameters(3, 4, 1, 1, "neuron"), "'row' or by 'col'"),
    ],
)
def test_wrong_input(call, said):
    with pytest.raises(OptionError, match=said):
        call()


def test_the_papers_sizes():
    """switch-base-32, MC-SMoE tables 2 and 7: 733M merged, 381M merged and compressed, 570M compressed alone."""
    width, inner, rank = 768, 3072, 32
    expert = 2 * width * inner
    base = 167e6
    small = factored_parameters(inner, width, rank, round(0.1 * inner)) + factored_parameters(
        width, inner, rank, round(0.1 * width)
    )
    assert small == pytest.approx(0.718e6, rel=1e-3)
    assert base + (32 + 88) * expert == pytest.approx(733e6, rel=2e-3)
    assert base + 32 * expert + 88 * small == pytest.approx(381e6, rel=2e-3)
    assert base + 32 * expert + 352 * small == pytest.approx(570e6, rel=2e-3)
    assert factored_parameters(inner, width, paying_rank(inner, width)) <= inner * width
    assert factored_parameters(inner, width, paying_rank(inner, width) + 1) > inner * width
