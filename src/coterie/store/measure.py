"""How fast this machine is, in short probes: its disk as the store reads it, its memory as one token sees it.

Nothing is written, and the page cache is left as it was. Every figure says how it was found.
"""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from coterie.experts import few_rows, has_few
from coterie.store.blob import Blob
from coterie.store.clock import Clock, WallClock
from coterie.store.disk import DiskTier
from coterie.store.machine import available_memory
from coterie.store.tiers import Tier
from coterie.units import format_bytes

# a probe that has read so much knows enough
_MOST_READ, _MOST_READS = 512 * 1024**2, 10_000
_WIDTH, _ROWS = 2048, 1024  # of one product: a matrix of a usual expert
_CALLS, _ROUNDS, _MOST_PASSES = 200, 9, 64


@dataclass(frozen=True)
class Speed:
    """Bytes per second, and how that was found.

    Attributes:
        bandwidth: bytes per second; infinite where nothing had to be waited for.
        how: what was timed, in words.
    """

    bandwidth: float
    how: str

    def seconds(self, nbytes: float) -> float:
        """To move ``nbytes``."""
        return nbytes / self.bandwidth

    def describe(self) -> str:
        return f"{format_bytes(self.bandwidth)}/s ({self.how})"


@dataclass(frozen=True)
class Speeds:
    """What bounds a token on this machine.

    Attributes:
        disk: of reads of experts.
        memory: of weights that one row is multiplied with.
        call: seconds of one small tensor operation: what the interpreter and torch take whatever its size.
    """

    disk: Speed
    memory: Speed
    call: float

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def measure_speeds(blobs: Sequence[Blob], dtype: torch.dtype, *, compiled: bool = False) -> Speeds:
    """All three, in about a second and a half. Blocks.

    Args:
        blobs: what the disk is to be asked for.
        dtype: of the products.
        compiled: one row is multiplied by the kernel of `coterie.experts.few_rows`, as the model will do it.

    Raises:
        StoreError: a file cannot be read.
    """
    return Speeds(disk_speed(blobs), memory_speed(dtype, compiled=compiled), call_seconds(dtype))


def disk_speed(
    blobs: Sequence[Blob], tier: Tier | None = None, *, seconds: float = 0.8, clock: Clock | None = None
) -> Speed:
    """Read experts here and there as the store would, one at a time, for about ``seconds``. Blocks.

    Reads are direct where the file system allows it, so that the page cache answers none of them; what the
    device or its host caches is their business. Elsewhere the pages are dropped before each read.

    Args:
        blobs: of which a random order is read until the time is over or 512 MiB are read; at least one.
        tier: read from this, and leave it open; None reads files.
        clock: of another machine, for tests.

    Raises:
        StoreError: a file is missing, too short or unreadable.
    """
    assert blobs, "nothing to read"
    clock, disk = clock or WallClock(), tier or DiskTier()
    order = random.Random(0).sample(range(len(blobs)), min(len(blobs), _MOST_READS))
    buffer = memoryview(mmap.mmap(-1, max(blob.slot_bytes for blob in blobs)))
    disk.read(blobs[order[0]], buffer)  # opening a file is no reading, and the first touch of the buffer neither
    total = count = 0
    begin = clock.now()
    for number in order:
        if isinstance(disk, DiskTier):
            _forget(blobs[number], disk)
        total += disk.read(blobs[number], buffer)
        count += 1
        if clock.now() - begin >= seconds or total >= _MOST_READ:
            break
    took = clock.now() - begin
    kind = "direct" if not isinstance(disk, DiskTier) or _is_direct(blobs[order[0]], disk) else "buffered"
    if tier is None:
        disk.close()
    how = f"{count} {kind} reads of {format_bytes(total / count)} in {took:.2f} s"
    return Speed(total / took if took else float("inf"), how)


def memory_speed(
    dtype: torch.dtype, *, compiled: bool = False, seconds: float = 0.3, clock: Clock | None = None
) -> Speed:  # fmt: skip
    """Multiply one row with matrices, larger together than the caches, for about ``seconds``. Blocks.

    This is what the weights of a decoded token go through; without the kernel (``compiled``) half of what copying
    memory would show is usual. The best pass counts, with all of torch's threads or with one: what neighbours take
    is not the machine's, and threads that wait for a core beside busy ones are a hundred times slower than one.
    """
    clock = clock or WallClock()
    each = _WIDTH * _ROWS * dtype.itemsize
    # written, not only reserved: pages nobody wrote are one page of zeros
    matrices = torch.ones(-(-_probe_bytes() // each), _ROWS, _WIDTH, dtype=dtype)
    compiled = compiled and has_few(matrices.new_ones(1, _WIDTH), [matrices[0]])
    product = few_rows if compiled else functional.linear
    best = {threads: _best_pass(matrices, product, seconds, threads, clock) for threads in _thread_counts()}
    threads = min(best, key=lambda count: best[count])
    what = f"{'compiled ' * compiled}products of one row, {str(dtype).removeprefix('torch.')}"
    how = f"{what}, {threads} thread{'s' * (threads > 1)}"
    return Speed(matrices.nbytes / best[threads] if best[threads] else float("inf"), how)


def call_seconds(dtype: torch.dtype) -> float:
    """Seconds of one operation on almost nothing, of the best of some rounds. Blocks for milliseconds."""
    clock, row, matrix = WallClock(), torch.ones(1, 16, dtype=dtype), torch.ones(16, 16, dtype=dtype)
    rounds = []
    with _threads(1):
        for _ in range(_ROUNDS):
            begin = clock.now()
            for _ in range(_CALLS // 2):
                functional.linear(row, matrix) + row
            rounds.append((clock.now() - begin) / _CALLS)
    return min(rounds)


def _best_pass(
    matrices: Tensor, product: Callable[[Tensor, Tensor], Tensor], seconds: float, threads: int, clock: Clock
) -> float:  # fmt: skip
    """Seconds of the quickest multiplication of a row with all ``matrices``."""
    row, best = matrices.new_ones(1, matrices.shape[-1]), float("inf")
    with _threads(threads):
        product(row, matrices[0])
        begin = clock.now()
        for _ in range(_MOST_PASSES):
            before = clock.now()
            for matrix in matrices:
                product(row, matrix)
            best = min(best, clock.now() - before)
            if clock.now() - begin >= seconds:
                break
    return best


def _thread_counts() -> list[int]:
    return sorted({torch.get_num_threads(), 1}, reverse=True)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads for products inside. The setting is global; it is put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe_bytes() -> int:
    """Eight times the last cache: at twice, a third of what is read still comes from it."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
        cache = int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):
        cache = 0
    return min(max(8 * cache, 64 * 1024**2), 256 * 1024**2, available_memory() // 8)


def _is_direct(blob: Blob, disk: DiskTier) -> bool:
    return all(disk.is_direct(segment.path) for segment in blob.segments)


def _forget(blob: Blob, disk: DiskTier) -> None:
    """Where reads are buffered, drop what the page cache already has of it."""
    for segment in blob.segments:
        if not disk.is_direct(segment.path) and hasattr(os, "posix_fadvise"):
            with segment.path.open("rb") as file:
                os.posix_fadvise(file.fileno(), segment.start, segment.length, os.POSIX_FADV_DONTNEED)
