"""Quantised matrices back to floats: pure functions from a checkpoint's bytes to its weights.

Each gives bit for bit what transformers' own loader gives on a CPU when it dequantises. Bytes become
floats through tables of 256 entries, in pieces that stay in the processor's cache: many times faster
than converting element by element, and without a temporary as large as the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from math import prod

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["PASSING_BYTES", "block_size", "dequantize_fp8_blocks", "dequantize_mxfp4"]

_PIECE = 1 << 18  # elements at a time
PASSING_BYTES = 12 * _PIECE
"""Memory a call needs while it runs, beside its result: a piece of float32, its indices, its scales."""

# E2M1: sign, two bits of exponent, one of mantissa
_FP4_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_PACKED = (torch.int8, torch.uint8, torch.float4_e2m1fn_x2)  # two E2M1 values in a byte, the low half first
_PAIR = {2: torch.int32, 4: torch.int64, 8: torch.complex128}  # bytes of an element -> what holds two
_EIGHT_BIT = (torch.float8_e4m3fn, torch.float8_e5m2)


def dequantize_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """[..., G, B] bytes and [..., G] exponents -> [..., 2 * G * B] floats.

    A byte holds two values of E2M1, the low half first; a block of 2 * B values shares a scale of
    2 ** (exponent - 127). Values are exact in bfloat16 and float32; float16 is rounded once. The
    standard makes NaN of the exponent 255; transformers takes it for one more power of two, and so does this.

    Args:
        blocks: uint8.
        scales: uint8.
        dtype: of the result, floating.
        out: where to write, contiguous and of the result's shape and dtype; new memory if None.

    Raises:
        OptionError: the two do not fit together.
    """
    if blocks.shape[:-1] != scales.shape or blocks.dtype != torch.uint8 or scales.dtype != torch.uint8:
        raise OptionError(
            f"MXFP4 needs uint8 blocks [..., G, B] and uint8 scales [..., G], found {blocks.dtype} "
            f"{list(blocks.shape)} and {scales.dtype} {list(scales.shape)}."
        )
    *lead, groups, half = blocks.shape
    out = _prepared(out, (*lead, 2 * groups * half), dtype, blocks.device)
    # float16 has not the range of the scales: multiply in float32 and round once
    wide = torch.float32 if dtype == torch.float16 else dtype
    codes, exponents, flat = blocks.reshape(-1, half), scales.reshape(-1), out.view(-1, 2 * half)
    powers = _powers(wide, blocks.device)
    step = max(1, _PIECE // max(1, 2 * half))
    for start in range(0, len(codes), step):
        piece = flat[start : start + step]
        values = _fp4_values(codes[start : start + step], wide, into=piece if wide == dtype else None)
        factors = powers.index_select(0, exponents[start : start + step].to(torch.int32))
        torch.mul(values, factors.unsqueeze(1), out=piece)
    if exponents.numel() and int(exponents.max()) == 255:
        flat[exponents == 255] *= 2
    return out


def dequantize_fp8_blocks(
    weight: Tensor, scale_inv: Tensor, block: tuple[int, int] | None, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """[N, K] numbers of 8 or 4 bits times a scale per block -> [N, K] floats.

    The product is taken in float32 and rounded to ``dtype`` once. Blocks are counted from the first row and
    column; the last ones may be smaller.

    Args:
        weight: float8_e4m3fn or float8_e5m2 [N, K]; or two E2M1 values per byte, [N, K / 2] of int8, uint8 or
            float4_e2m1fn_x2.
        scale_inv: what to multiply with: [blocks down, blocks across], or one number for all. Floating, or
            exponents of E8M0 as uint8.
        block: rows and columns of one block; what fits the scales if they are not of that size, see `block_size`.
        dtype: of the result, floating.
        out: where to write, contiguous and of the result's shape and dtype; new memory if None.

    Raises:
        OptionError: the two do not fit together.
    """
    if weight.ndim != 2 or weight.dtype not in (*_EIGHT_BIT, *_PACKED):
        raise OptionError(f"a quantised matrix has 2 dimensions and 8 or 4 bits, found {weight.dtype} {weight.shape}.")
    rows, columns = weight.shape[0], weight.shape[1] * (1 if weight.dtype in _EIGHT_BIT else 2)
    out = _prepared(out, (rows, columns), dtype, weight.device)
    if not out.numel():
        return out
    height, width = block_size((rows, columns), tuple(scale_inv.shape), block)
    scales = _float_scales(scale_inv).reshape(-(-rows // height), -1)
    for start, stop, first, last in _pieces(rows, height, max(1, _PIECE // max(1, columns))):
        values = _values(weight[start:stop])
        factors = scales[first:last].repeat_interleave(width, dim=1)[:, :columns]
        torch.mul(values, factors, out=out[start:stop])
    return out


def block_size(shape: tuple[int, int], grid: tuple[int, ...], block: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns of one block of a matrix of ``shape`` that has ``grid`` scales.

    All of it where there is one scale, in any number of dimensions; ``block``, if so many blocks of that size cover
    the matrix; else equal blocks, as many as there are scales. One checkpoint may have both: DeepSeek-V4 says
    [128, 128] and stores experts with a scale per [1, 32].

    Raises:
        OptionError: neither fits.
    """
    if prod(grid) == 1:
        return shape
    if block is not None and grid == tuple(-(-n // b) for n, b in zip(shape, block, strict=True)):
        return block
    if len(grid) != 2 or any(g < 1 or n % g for n, g in zip(shape, grid, strict=True)):
        raise OptionError(
            f"a matrix {list(shape)} cannot have a grid of {list(grid)} scales"
            f"{'' if block is None else f' with blocks of {list(block)}'}."
        )
    return shape[0] // grid[0], shape[1] // grid[1]


def _pieces(rows: int, height: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """Ranges of rows, and the rows of the grid with their scales: one for all, or one for each."""
    if height == 1:
        for start in range(0, rows, limit):
            stop = min(start + limit, rows)
            yield start, stop, start, stop
        return
    for top in range(0, rows, height):
        bottom, number = min(top + height, rows), top // height
        for start in range(top, bottom, limit):
            yield start, min(start + limit, bottom), number, number + 1


def _values(piece: Tensor) -> Tensor:
    """[n, bytes] -> float32 [n, elements], without scales."""
    if piece.dtype in _PACKED:
        return _fp4_values(piece.view(torch.uint8), torch.float32)
    codes = piece.view(torch.uint8).reshape(-1).to(torch.int32)
    return _fp8_table(piece.dtype, piece.device).index_select(0, codes).view(piece.shape)


def _fp4_values(codes: Tensor, dtype: torch.dtype, into: Tensor | None = None) -> Tensor:
    """uint8 [n, B] -> [n, 2 B] of ``dtype``: one look-up moves both values of a byte."""
    pairs = _fp4_table(dtype, codes.device)
    into = codes.new_empty((codes.shape[0], 2 * codes.shape[1]), dtype=dtype) if into is None else into
    torch.index_select(pairs, 0, codes.reshape(-1).to(torch.int32), out=into.view(pairs.dtype).view(-1))
    return into


@cache
def _fp4_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Byte -> its two values, side by side in one integer."""
    magnitudes = torch.tensor(_FP4_VALUES, dtype=dtype)
    values = torch.cat([magnitudes, -magnitudes])
    pairs = torch.stack([values.repeat(16), values.repeat_interleave(16)], dim=1)
    return (
        pairs.view({4: torch.int32, 8: torch.int64, 16: torch.complex128}[2 * dtype.itemsize]).reshape(256).to(device)
    )


@cache
def _fp8_table(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).to(device)


@cache
def _powers(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Byte -> 2 ** (byte - 127); 255 stays at 2 ** 127, as float32 goes no further."""
    return torch.pow(2.0, torch.arange(256, dtype=torch.int32).clamp_(max=254) - 127).to(dtype).to(device)


def _float_scales(scales: Tensor) -> Tensor:
    return (scales.to(torch.float32) - 127.0).exp2() if scales.dtype == torch.uint8 else scales.to(torch.float32)


def _prepared(out: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=dtype, device=device)
    if tuple(out.shape) != shape or out.dtype != dtype or not out.is_contiguous():
        raise OptionError(f"out must be contiguous {dtype} {list(shape)}, found {out.dtype} {list(out.shape)}.")
    return out
