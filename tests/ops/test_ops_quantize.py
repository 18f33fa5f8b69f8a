"""Bytes to floats: against transformers' own functions, and against the definition written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops import quantize
from coterie.ops.quantize import block_size, dequantize_fp8_blocks, dequantize_mxfp4

steady = settings(derandomize=True, max_examples=60, deadline=None)
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
FLOATS = (torch.bfloat16, torch.float32, torch.float16)


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Signs of zeros included; one NaN is as good as another."""
    as_integer = INTEGERS[ours.dtype.itemsize]
    number = ~torch.isnan(theirs)
    return (
        ours.shape == theirs.shape
        and ours.dtype == theirs.dtype
        and torch.equal(number, ~torch.isnan(ours))
        and torch.equal(ours.view(as_integer)[number], theirs.contiguous().view(as_integer)[number])
    )


def fp8(rows: int, columns: int, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    return torch.randint(0, 256, (rows, columns), dtype=torch.uint8).view(dtype)


def plain_blocks(weight: Tensor, scales: Tensor, block: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The definition, one number at a time."""
    numbers, factors = weight.float(), scales.float()
    out = torch.empty_like(numbers)
    for row in range(numbers.shape[0]):
        for column in range(numbers.shape[1]):
            out[row, column] = numbers[row, column] * factors[row // block[0], column // block[1]]
    return out.to(dtype)


def test_mxfp4_by_hand():
    """E2M1 of the nibbles 1, 2, 7 and 15 is 0.5, 1, 6 and -6; the low half of a byte comes first."""
    blocks = torch.tensor([[[0x21, 0xF7]]], dtype=torch.uint8)
    values = dequantize_mxfp4(blocks, torch.tensor([[128]], dtype=torch.uint8), torch.float32)
    assert values.tolist() == [[1.0, 2.0, 12.0, -12.0]]


@pytest.mark.parametrize("dtype", [*FLOATS, torch.float64])
def test_mxfp4_every_byte_with_every_exponent_is_transformers(dtype):
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    blocks = torch.arange(256, dtype=torch.uint8).repeat(256).view(256 * 16, 1, 16)
    scales = torch.arange(256, dtype=torch.uint8).repeat_interleave(16).view(256 * 16, 1)
    theirs = convert_moe_packed_tensors(blocks[None], scales[None], dtype=dtype)[0].t()
    assert same_bits(dequantize_mxfp4(blocks, scales, dtype), theirs)


@pytest.mark.parametrize("dtype", FLOATS)
def test_mxfp4_in_pieces_and_into_given_memory(dtype, monkeypatch):
    blocks = torch.randint(0, 256, (3, 7, 5, 16), dtype=torch.uint8)
    scales = torch.randint(100, 140, (3, 7, 5), dtype=torch.uint8)
    whole = dequantize_mxfp4(blocks, scales, dtype)
    monkeypatch.setattr(quantize, "_PIECE", 96)
    out = torch.full((3, 7, 160), float("nan"), dtype=dtype)
    assert dequantize_mxfp4(blocks, scales, dtype, out) is out
    assert same_bits(out, whole)


def test_nothing_stays_nothing():
    empty = torch.empty(0, 2, 16, dtype=torch.uint8)
    assert dequantize_mxfp4(empty, empty[..., 0], torch.bfloat16).shape == (0, 64)
    assert dequantize_fp8_blocks(fp8(0, 8), torch.ones(()), None, torch.bfloat16).shape == (0, 8)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("numbers", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    ("shape", "block"), [((256, 384), (128, 128)), ((48, 40), (48, 1)), ((48, 40), (1, 40)), ((64, 96), (64, 96))]
)
def test_fp8_is_transformers(shape, block, numbers, dtype):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight, scale = fp8(*shape, numbers), torch.rand(shape[0] // block[0], shape[1] // block[1]) * 1e-2
    exponents = torch.randint(100, 150, scale.shape, dtype=torch.uint8)
    for scales in (scale, scale.to(torch.bfloat16), exponents.view(torch.float8_e8m0fnu), exponents):
        theirs = Fp8Dequantize(None)._dequantize_one(weight, scales, dtype)
        assert same_bits(dequantize_fp8_blocks(weight, scales, block, dtype), theirs)


@pytest.mark.parametrize("scale", [torch.tensor(0.37), torch.tensor([0.37])])
def test_fp8_with_one_scale_is_transformers(scale):
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight = fp8(24, 40)
    theirs = Fp8Dequantize(None)._dequantize_one(weight, scale, torch.bfloat16)
    assert same_bits(dequantize_fp8_blocks(weight, scale, None, torch.bfloat16), theirs)


@pytest.mark.parametrize("packed", [torch.int8, torch.uint8, torch.float4_e2m1fn_x2])
def test_four_bits_under_an_fp8_config_are_transformers(packed):
    """As DeepSeek-V4 stores experts: blocks of 1 x 32 where config.json says 128 x 128."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    codes = torch.randint(-128, 128, (24, 64), dtype=torch.int8)
    scales = torch.randint(100, 150, (24, 4), dtype=torch.uint8).view(torch.float8_e8m0fnu)
    theirs = Fp8Dequantize(None)._dequantize_one(codes, scales, torch.bfloat16)
    assert same_bits(dequantize_fp8_blocks(codes.view(packed), scales, (128, 128), torch.bfloat16), theirs)


@steady
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    block=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    piece=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_fp8_blocks_that_do_not_divide_the_matrix(shape, block, piece, seed):
    torch.manual_seed(seed)
    weight, scales = fp8(*shape), torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "_PIECE", piece)
        ours = dequantize_fp8_blocks(weight, scales, block, torch.bfloat16)
    assert same_bits(ours, plain_blocks(weight, scales, block, torch.bfloat16))


def test_blocks_are_the_makers_where_transformers_cuts_others():
    """160 rows in blocks of 128 are 128 and 32. transformers would make two of 80, and refuses 576 rows."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    assert block_size((160, 128), (2, 1), (128, 128)) == (128, 128)
    assert block_size((576, 128), (5, 1), (128, 128)) == (128, 128)
    with pytest.raises(ValueError, match="not divisible"):
        Fp8Dequantize(None)._dequantize_one(fp8(576, 128), torch.rand(5, 1), torch.bfloat16)
    ours = dequantize_fp8_blocks(torch.ones(576, 128).to(torch.float8_e4m3fn), torch.rand(5, 1), (128, 128), FLOATS[0])
    assert [len(ours[start : start + 128].unique()) for start in range(0, 576, 128)] == [1, 1, 1, 1, 1]


def test_block_size():
    assert block_size((24, 64), (24, 2), (128, 128)) == (1, 32)
    assert block_size((24, 64), (1, 1), None) == block_size((24, 64), (), (8, 8)) == (24, 64)
    for grid in [(5, 1), (0, 1), (2,), (3, 2, 1), (48, 1)]:
        with pytest.raises(OptionError, match="cannot have a grid"):
            block_size((24, 64), grid, (128, 128))


def test_what_does_not_fit_is_refused():
    blocks, scales = torch.zeros(4, 2, 16, dtype=torch.uint8), torch.zeros(4, 2, dtype=torch.uint8)
    with pytest.raises(OptionError, match="MXFP4 needs uint8 blocks"):
        dequantize_mxfp4(blocks, scales[:3], torch.bfloat16)
    with pytest.raises(OptionError, match="MXFP4 needs uint8 blocks"):
        dequantize_mxfp4(blocks.float(), scales, torch.bfloat16)
    with pytest.raises(OptionError, match="out must be contiguous"):
        dequantize_mxfp4(blocks, scales, torch.bfloat16, torch.empty(4, 64))
    with pytest.raises(OptionError, match="8 or 4 bits"):
        dequantize_fp8_blocks(torch.ones(4, 4), torch.ones(1, 1), None, torch.bfloat16)
    with pytest.raises(OptionError, match="out must be contiguous"):
        dequantize_fp8_blocks(fp8(4, 6), torch.ones(1, 1), None, torch.bfloat16, torch.empty(6, 4).bfloat16().t())
