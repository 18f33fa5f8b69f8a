"""Memory for large tensors by large pages, used again: a layer is made and forgotten many times, and asking the system
for fresh memory each time takes longer than filling it."""

from __future__ import annotations

import mmap
import weakref
from collections import defaultdict
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

__all__ = ["empty", "forget", "stacked"]

_LARGE = 4 << 20  # bytes below which torch's own memory is as good
_CAN = hasattr(mmap, "MADV_HUGEPAGE") and hasattr(mmap, "MAP_ANONYMOUS")
_MOST = 512 << 20  # bytes that are kept for the next tensor of their size
_SPARE: defaultdict[int, list[mmap.mmap]] = defaultdict(list)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor of the caller's own. When it is forgotten, its memory is kept for the next of its size
    until `forget`."""
    nbytes = prod(shape) * dtype.itemsize
    if nbytes < _LARGE or not _CAN:
        return torch.empty(shape, dtype=dtype)
    try:
        memory = _SPARE[nbytes].pop()
    except IndexError:
        memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    # the tensor and its views hold the memoryview, and nobody else does
    view = memoryview(memory)
    weakref.finalize(view, _keep, memory).atexit = False
    return torch.frombuffer(view, dtype=dtype).view(shape)


def forget() -> None:
    """Give the system back what is kept."""
    _SPARE.clear()


def _keep(memory: mmap.mmap) -> None:
    if sum(size * len(kept) for size, kept in list(_SPARE.items())) + len(memory) <= _MOST:
        _SPARE[len(memory)].append(memory)


def stacked(tensors: Sequence[Tensor]) -> Tensor:
    """What `torch.stack` makes of equal shapes and types, without a gradient, in such memory."""
    out = empty((len(tensors), *tensors[0].shape), tensors[0].dtype)
    for row, tensor in zip(out, tensors, strict=True):
        row.copy_(tensor)
    return out
