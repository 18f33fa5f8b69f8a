"""Memory for large tensors by large pages: a layer is made and forgotten many times, and small pages cost as much
time as filling them."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["empty", "stacked"]

_LARGE = 4 << 20  # bytes below which torch's own memory is as good
_CAN = hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MAP_ANONYMOUS")


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of the caller's own; given back to the system when it is forgotten."""
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < _LARGE or not _CAN:
        return torch.empty(shape, dtype=dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """What `torch.stack` makes of equal shapes and types, without a gradient, in such memory."""
    out = empty((len(tensors), *tensors[0].shape), tensors[0].dtype)
    for row, tensor in zip(out, tensors, strict=True):
        row.copy_(tensor)
    return out
