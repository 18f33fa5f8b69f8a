"""Memory that stays with a process that trains.

Every step makes the same large gradients and drops them. The C library gives such blocks back to the kernel at once
and asks for them anew, and the kernel clears them page by page: on a processor that is a fifth of a step of a layer
with many experts. Kept, they are used again as they are.
"""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_memory"]

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep what it frees, and ask torch for huge pages. True where both were understood.

    For a process of its own, before its first large tensor: it holds for all threads and cannot be taken back, and what
    was the most memory in use stays in use. THP_MEM_ALLOC_ENABLE and MALLOC_* of the environment stand where they are
    set. Not glibc: nothing is done.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch reads it at its first allocation
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, _NEVER))
