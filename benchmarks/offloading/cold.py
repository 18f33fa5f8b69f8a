"""Cold files: none of their pages in the page cache, and proof of it."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)


def make_cold(paths: Iterable[Path]) -> None:
    """Drop the files' pages from the page cache. Every mapping and handle of them must be closed.

    Raises:
        RuntimeError: pages stayed, because another process still maps a file (or its file system lives in memory).
    """
    for path in paths:
        drop(path)
        if (share := resident_share(path)) > 0:
            raise RuntimeError(
                f"{path} is still {share:.1%} in the page cache after it was dropped: some process maps it, "
                "or its file system lives in memory. End that process, or choose a folder on a disk with --work."
            )


def drop(path: Path) -> None:
    """Ask the kernel to forget a file's clean pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def resident_share(path: Path) -> float:
    """The share of a file's pages that lie in the page cache, by mincore."""
    size = path.stat().st_size
    if size == 0:
        return 0.0
    pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as mapped:
        # a private writable mapping only because ctypes takes addresses of writable buffers alone
        start = (ctypes.c_char * size).from_buffer(mapped)
        failed = _LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), flags)
        del start
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore of {path}")
    return sum(flag & 1 for flag in flags) / pages
