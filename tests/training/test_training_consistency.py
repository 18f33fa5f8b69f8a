from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.training.consistency import Consistency, divergence, doubled


@given(st.integers(0, 1000))
def test_it_is_the_textbook_formula(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 7, 11, generator=generator, dtype=torch.float64)
    p, q = a.softmax(-1), b.softmax(-1)
    kl = (p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)
    assert float(divergence(a, b)) == pytest.approx(float(kl.mean() / 2), rel=1e-6)
    assert float(divergence(a.float(), b.float())) == pytest.approx(float(kl.mean() / 2), rel=1e-5)


def test_it_is_symmetric_never_negative_and_nothing_for_equals():
    a, b = torch.randn(2, 5, 9)
    assert float(divergence(a, b)) == pytest.approx(float(divergence(b, a)), rel=1e-6)
    assert float(divergence(a, b)) > 0
    assert float(divergence(a, a.clone())) == 0


def test_it_is_finite_where_probabilities_are_nothing():
    a = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]]).requires_grad_()
    b = torch.tensor([[-1e4, 1e4, 0.0], [1e4, -1e4, 1e4]]).requires_grad_()
    loss = divergence(a, b)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(a.grad.isfinite().all())
    assert bool(b.grad.isfinite().all())


def test_gradient_flows_through_both():
    a, b = torch.randn(5, 9).requires_grad_(), torch.randn(5, 9).requires_grad_()
    divergence(a, b).backward()
    assert bool((a.grad != 0).any())
    assert bool((b.grad != 0).any())


def test_padding_changes_nothing_and_alone_it_is_nothing():
    a, b = torch.randn(2, 6, 9)
    mask = torch.tensor([True, True, False, True, False, False])
    assert float(divergence(a, b, mask)) == pytest.approx(float(divergence(a[mask], b[mask])), rel=1e-6)
    a.requires_grad_()
    nothing = divergence(a, b, torch.zeros(6, dtype=torch.bool))
    nothing.backward()
    assert float(nothing.detach()) == 0
    assert bool((a.grad == 0).all())


def test_alpha_rises_where_it_is_told_to():
    assert [Consistency(2.0, 0.5).weight(step, 8) for step in (0, 2, 4, 7)] == [0, 0.5, 1, 1]
    assert Consistency(2.0).weight(0, 8) == 1


@pytest.mark.parametrize("wrong", [(-1, 0), (float("nan"), 0), (1, 2), (1, -0.1)])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(OptionError):
        Consistency(*wrong)


def test_a_batch_is_followed_by_itself():
    both = doubled({"input_ids": torch.tensor([[1, 2], [3, 4]]), "use_cache": False})
    assert both["input_ids"].tolist() == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert both["use_cache"] is False
