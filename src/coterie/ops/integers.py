"""Matrices as integers of 8 or 4 bits with a scale for every few of them, and back. Rounding to nearest.

A scale is bfloat16 and is rounded before the integers are made, so that it adds no error of its own. Eight bits are
symmetric, -127 to 127. Four bits are -8 to 7 with a signed scale: the largest number of a group lies at -8, or, where
that is nearer on the whole, a little beyond it. Two of them share a byte, the left one in the low half.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["dequantize", "packed_columns", "quantize", "scale_columns", "stored_bits"]

_REACH = {8: 127, 4: 8}
# of the largest number in a group, what the end of the scale stands for: tried in turn, the nearest wins
_SHRINK = (1.0, 1.05, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_ROWS = 1 << 20  # numbers at a time


def packed_columns(columns: int, bits: int) -> int:
    """Bytes that hold a row of integers."""
    _check(bits)
    return columns if bits == 8 else -(-columns // 2)


def scale_columns(columns: int, group: int) -> int:
    """Scales of a row; a ``group`` of 0 is the whole row."""
    return 1 if group == 0 else -(-columns // group)


def stored_bits(columns: int, bits: int, group: int) -> float:
    """Bits per number, scales counted."""
    return (8 * packed_columns(columns, bits) + 16 * scale_columns(columns, group)) / columns


def quantize(weight: Tensor, bits: int, group: int = 0) -> tuple[Tensor, Tensor]:
    """[m, n] floats -> integers and their scales [m, groups] bfloat16.

    The integers are int8 [m, n] for 8 bits, uint8 [m, ceil(n / 2)] for 4.

    Args:
        weight: finite.
        bits: 8 or 4.
        group: neighbours in a row that share a scale; the last group may be smaller. 0: a row.

    Raises:
        OptionError: other bits, a group below 0, no matrix, numbers that are not finite.
    """
    _check(bits, group)
    if weight.dim() != 2 or not weight.is_floating_point():
        raise OptionError(f"Only matrices of floats can be quantised, found {weight.dtype} {list(weight.shape)}.")
    if not bool(torch.isfinite(weight).all()):
        raise OptionError("A matrix holds numbers that are not finite and cannot be quantised.")
    pieces = [_quantize(piece, bits, group) for piece in weight.split(max(1, _ROWS // max(1, weight.shape[1])))]
    codes, scales = zip(*pieces, strict=True)
    return torch.cat(codes), torch.cat(scales)


def dequantize(codes: Tensor, scales: Tensor, columns: int, group: int, dtype: torch.dtype) -> Tensor:
    """The floats [m, n] of `quantize`, each product rounded to ``dtype`` once.

    Args:
        codes: int8 [m, n] or uint8 [m, ceil(n / 2)].
        scales: [m, groups].
        columns: n.
        group: 0 for a whole row.
        dtype: floating.
    """
    values = codes.to(dtype) if codes.dtype == torch.int8 else _unpacked(codes, dtype)
    if group == 0:
        return values[:, :columns] * scales.to(dtype)
    if values.shape[1] % group == 0:
        m = len(values)
        return (values.view(m, -1, group) * scales.to(dtype)[:, :, None]).view(m, -1)[:, :columns]
    return values[:, :columns] * scales.to(dtype).repeat_interleave(group, dim=1)[:, :columns]


def _quantize(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    m, n = weight.shape
    group = group or n
    padded = torch.nn.functional.pad(weight.float(), (0, -n % group)).view(m, -1, group)
    scale = _eight(padded) if bits == 8 else _four(padded)
    reach = _REACH[bits]
    codes = _rounded(padded, scale, -reach, 127 if bits == 8 else 7).view(m, -1)[:, :n].to(torch.int8)
    return (codes if bits == 8 else _packed(codes)), scale.squeeze(2).bfloat16()


def _eight(groups: Tensor) -> Tensor:
    """[m, g, 1] scales, of values that bfloat16 holds."""
    return _held(groups.abs().amax(2, keepdim=True) / 127)


def _four(groups: Tensor) -> Tensor:
    """As `_eight`, of several the one with the least error."""
    largest = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    best, least = torch.empty(0), torch.empty(0)
    for number, scale in enumerate(_tried(largest)):
        error = (_rounded(groups, scale, -8, 7) * scale - groups).square().sum(2, keepdim=True)
        better = torch.ones_like(error, dtype=torch.bool) if not number else error < least
        best = torch.where(better, scale, best if number else scale)
        least = torch.where(better, error, least if number else error)
    return best


def _tried(largest: Tensor) -> Iterator[Tensor]:
    yield from (_held(largest * share / -8) for share in _SHRINK)


def _held(scale: Tensor) -> Tensor:
    return scale.bfloat16().float()


def _rounded(groups: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return (groups / torch.where(scale == 0, 1.0, scale)).round().clamp(low, high)


def _packed(codes: Tensor) -> Tensor:
    """int8 [m, n] of -8 to 7 -> uint8 [m, ceil(n / 2)]."""
    low, high = torch.nn.functional.pad(codes, (0, codes.shape[1] % 2)).view(len(codes), -1, 2).unbind(2)
    return ((low & 15) | ((high & 15) << 4)).view(torch.uint8)


def _unpacked(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 [m, b] -> [m, 2 b] of ``dtype``: one look-up moves both numbers of a byte."""
    pairs = _table(dtype, codes.device).index_select(0, codes.reshape(-1).to(torch.int32))
    return pairs.view(dtype).view(len(codes), -1)


@cache
def _table(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Byte -> its two numbers, side by side in one element."""
    signed = torch.tensor([n if n < 8 else n - 16 for n in range(16)], dtype=dtype)
    pairs = torch.stack([signed.repeat(16), signed.repeat_interleave(16)], dim=1)
    holder = {2: torch.int32, 4: torch.int64, 8: torch.complex128}[dtype.itemsize]
    return pairs.view(holder).reshape(256).to(device)


def _check(bits: int, group: int = 0) -> None:
    if bits not in _REACH:
        raise OptionError(f"Integers have 8 or 4 bits, not {bits}.")
    if group < 0:
        raise OptionError(f"A group has 1 number or more, or is a whole row (0), not {group}.")
