"""Matrices as integers and back: within half a step, sizes as said, and as good as rounding can be."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.ops.integers import dequantize, packed_columns, quantize, scale_columns, stored_bits

WIDTHS = st.tuples(st.sampled_from([4, 8]), st.sampled_from([0, 8, 16, 32]))


def drawn(m, n, seed=0):
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed))


@given(m=st.integers(1, 6), n=st.integers(1, 50), width=WIDTHS, seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_back_again(m, n, width, seed):
    bits, group = width
    weight = drawn(m, n, seed)
    codes, scales = quantize(weight, bits, group)
    assert codes.shape == (m, packed_columns(n, bits))
    assert scales.shape == (m, scale_columns(n, group))
    assert scales.dtype == torch.bfloat16
    back = dequantize(codes, scales, n, group, torch.float32)
    step = scales.float().abs().repeat_interleave(group or n, dim=1)[:, :n]
    # what lies beyond the end of the scale is cut there; of eight bits nothing does but by the scale's rounding
    inside = weight.abs() <= (127 if bits == 8 else 7) * step
    assert bool(((back - weight).abs() <= 0.5001 * step)[inside].all())
    assert stored_bits(n, bits, group) * m * n == pytest.approx(8 * (codes.nbytes + scales.nbytes))


@pytest.mark.parametrize(("bits", "group", "most"), [(8, 0, 0.01), (8, 32, 0.0055), (4, 32, 0.085), (4, 128, 0.105)])
def test_error(bits, group, most):
    """Of normal numbers, relative: bounds a little above what was measured."""
    weight = drawn(64, 512)
    error = (dequantize(*quantize(weight, bits, group), 512, group, torch.float32) - weight).norm() / weight.norm()
    assert float(error) < most


def test_zeros_and_integers_are_exact():
    weight = torch.zeros(3, 40)
    weight[1] = torch.arange(40) % 8 - 8
    back = dequantize(*quantize(weight, 4, 8), 40, 8, torch.float32)
    assert torch.equal(back, weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [4, 8])
def test_dtypes_agree(dtype, bits):
    codes, scales = quantize(drawn(5, 33), bits, 16)
    wide = dequantize(codes, scales, 33, 16, torch.float64)
    assert torch.equal(dequantize(codes, scales, 33, 16, dtype), wide.to(dtype))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: quantize(torch.ones(2, 2), 3), "8 or 4 bits"),
        (lambda: quantize(torch.ones(2, 2), 4, -1), "whole row"),
        (lambda: quantize(torch.ones(2), 4), "matrices"),
        (lambda: quantize(torch.full((2, 2), float("inf")), 4), "not finite"),
    ],
)
def test_wrong_input(call, said):
    with pytest.raises(OptionError, match=said):
        call()
