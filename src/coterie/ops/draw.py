"""Random numbers without a state: a function of a key, the same on every device and in every order.

A generator's next number depends on what was asked before, so a draw from it changes with the batch,
the padding, a recomputation. Here a number is a hash of who asks: `fold` words (a seed, a site, a
sequence, a position) into a key one after another, then read as many numbers of the key as needed.
The hash is the finaliser of SplitMix64 (Steele et al. 2014), in integers whose products wrap. No global
random state is read or moved; thread-safe.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import overload

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15  # odd, so that multiples of it run through all of int64
_MULTIPLY = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFT = (30, 27, 31)
_WORD = (1 << 64) - 1
_FRACTION = 23  # bits of a float32 in [0, 1) that leave one for the half that keeps 0 and 1 out


@lru_cache(maxsize=4096)
def word_of(text: str) -> int:
    """A text, such as the name of a site, as a word for `fold`: 64 bits of its hash."""
    return _signed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little"))


@overload
def fold(key: int, word: int) -> int: ...
@overload
def fold(key: int | Tensor, word: int | Tensor) -> int | Tensor: ...
def fold(key: int | Tensor, word: int | Tensor) -> int | Tensor:
    """The key that ``word`` leads to from ``key``: numbers, or int64 tensors that broadcast.

    The order of the words matters. Equal numbers give equal keys, whether they come in a tensor or not.
    """
    if isinstance(key, int) and isinstance(word, int):
        return _signed(_mixed(key + (word + 1) * _GOLDEN))
    step = (word + 1) * _signed(_GOLDEN) if isinstance(word, Tensor) else _signed((word + 1) * _GOLDEN)
    moved = key + step
    assert isinstance(moved, Tensor)
    return _mix(moved)


def bits(key: int | Tensor, count: int, *, device: torch.device | None = None) -> Tensor:
    """[..., count] int32, uniform over all of int32: the first ``count`` numbers of each int64 key.

    In int32, which is four times as quick as int64 where the numbers of many items are wanted: the lower half of the
    key starts the sequence and the upper half is added between the two products of the hash (Wellons, lowbias32).
    """
    if not isinstance(key, Tensor):
        key = torch.tensor(key, dtype=torch.int64, device=device)
    low, high = key.int(), (key >> 32).int()
    x = low[..., None] + torch.arange(1, count + 1, dtype=torch.int32, device=key.device) * _signed32(_GOLDEN)
    room = torch.empty_like(x)  # new memory is dearer than arithmetic
    _xor_shifted(x, 16, room).mul_(0x21F0AAAD).add_(high[..., None])
    _xor_shifted(x, 15, room).mul_(0x735A2D97)
    return _xor_shifted(x, 15, room)


def uniform(key: int | Tensor, count: int, *, device: torch.device | None = None) -> Tensor:
    """[..., count] float32, uniform in (0, 1): neither 0 nor 1, in steps of 2**-23."""
    whole = (bits(key, count, device=device) >> (32 - _FRACTION)).bitwise_and_((1 << _FRACTION) - 1)
    return whole.float().add_(0.5).mul_(2.0**-_FRACTION)


def gumbel(key: int | Tensor, count: int, *, device: torch.device | None = None) -> Tensor:
    """[..., count] float32 of the standard Gumbel distribution.

    The k largest of logits plus such noise are k draws without replacement from softmax(logits)
    (Kool et al. 2019, arXiv 1903.06059).
    """
    return uniform(key, count, device=device).log_().neg_().log_().neg_()


def _xor_shifted(x: Tensor, shift: int, room: Tensor) -> Tensor:
    """``x ^= x >> shift`` in place, with zeros from the left: a plain shift keeps the sign, hence the mask."""
    torch.bitwise_right_shift(x, shift, out=room)
    return x.bitwise_xor_(room.bitwise_and_((1 << (32 - shift)) - 1))


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; ``x`` is ours and overwritten. A shift to the right keeps the sign, hence the masks."""
    for shift, factor in zip(_SHIFT, (*_MULTIPLY, None), strict=True):
        x ^= (x >> shift).bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            x *= _signed(factor)
    return x


def _mixed(x: int) -> int:
    """The same in plain numbers."""
    x &= _WORD
    for shift, factor in zip(_SHIFT, (*_MULTIPLY, 1), strict=True):
        x = ((x ^ (x >> shift)) * factor) & _WORD
    return x


def _signed32(x: int) -> int:
    """The int32 with the same lower 32 bits."""
    x &= 0xFFFFFFFF
    return x - (1 << 32) if x >> 31 else x


def _signed(x: int) -> int:
    """The int64 with the same 64 bits."""
    x &= _WORD
    return x - (1 << 64) if x >> 63 else x
