"""All experts at once: the gradient of a stack is written where it stays, and is the gradient."""

from __future__ import annotations

import pytest
import torch

from coterie.experts import FFN, FFNShape
from coterie.experts.grouped import _GroupedProduct
from coterie.testing.experts import ragged_routing


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_and_gradients_are_those_of_each_matrix(dtype, transposed):
    counts = torch.tensor([3, 0, 5, 1])
    x = torch.randn(9, 16).to(dtype).requires_grad_()
    stack = torch.randn(4, 24, 16).to(dtype)
    stack = (stack.mT.contiguous() if transposed else stack).requires_grad_()
    y = _GroupedProduct.apply(x, stack, counts, transposed)
    matrices = stack if transposed else stack.mT
    expected = torch.cat([rows @ matrix for rows, matrix in zip(x.split(counts.tolist()), matrices, strict=True)])
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    mix = torch.randn_like(y)
    wanted = torch.autograd.grad(expected, (x, stack), mix)
    kept = torch.autograd.grad(y, (x, stack), mix, create_graph=True)
    found = torch.autograd.grad(y, (x, stack), mix)
    for mine, differentiable, theirs in zip(found, kept, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=10 * tolerance)
        torch.testing.assert_close(differentiable, theirs, rtol=tolerance, atol=10 * tolerance)
        assert differentiable.requires_grad
    (twice,) = torch.autograd.grad(kept[0], stack, torch.ones_like(x))
    assert twice[1].eq(0).all()
    assert twice[0].ne(0).any()


def test_a_sum_of_rows_has_gradients():
    """That gradient is one number seen from everywhere."""
    ffn, routing = FFN(5, FFNShape(16, 8)), ragged_routing(5)
    ffn.rows(torch.randn(routing.num_items, 16), routing).sum().backward()
    assert all(p.grad is not None for p in ffn.parameters())


def test_it_is_the_way_taken_in_training_alone(monkeypatch):
    calls = []
    original = _GroupedProduct.apply
    monkeypatch.setattr(_GroupedProduct, "apply", lambda *inputs: calls.append(1) or original(*inputs))
    ffn, routing = FFN(5, FFNShape(16, 8)), ragged_routing(5)
    x = torch.randn(routing.num_items, 16)
    with torch.no_grad():
        ffn(x, routing)
    assert not calls
    ffn(x, routing).sum().backward()
    assert len(calls) == 2
