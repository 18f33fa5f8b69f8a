"""Where experts are read from: the contract, memory, and an emulated link for tests."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from coterie.errors import StoreError
from coterie.store.blob import Blob, Segment
from coterie.store.clock import Clock, WallClock


class Tier(ABC):
    """A place that holds blobs, immutable. Thread-safe: readers share one tier."""

    @abstractmethod
    def read(self, blob: Blob, buffer: memoryview) -> int:
        """Fill ``buffer`` with the blob's segments, all or an error; blocks. Returns the bytes read.

        Args:
            blob: what to read.
            buffer: at least ``blob.slot_bytes`` long, aligned to `ALIGNMENT`.

        Raises:
            StoreError: a file is missing, too short or unreadable; the text names it. What the
                buffer holds then is undefined.
        """

    def close(self) -> None:
        """Free what the tier keeps open. Reading afterwards opens it again."""
        return


def check_length(segment: Segment, got: int) -> None:
    """A read may end early only behind the last byte that is needed.

    Raises:
        StoreError: the file is shorter than the checkpoint says.
    """
    if got < segment.needed:
        raise StoreError(
            f"{segment.path} is truncated: {segment.needed} bytes at {segment.start} were asked for, {got} came. "
            "Copy or download it again."
        )


class MemoryTier(Tier):
    """Files held in memory: path -> content."""

    def __init__(self, files: Mapping[Path, bytes]) -> None:
        self._files = dict(files)

    def read(self, blob: Blob, buffer: memoryview) -> int:
        total = 0
        for segment in blob.segments:
            if segment.path not in self._files:
                raise StoreError(f"{segment.path} is not in memory. There are: {', '.join(map(str, self._files))}.")
            data = self._files[segment.path][segment.start : segment.start + segment.length]
            check_length(segment, len(data))
            buffer[segment.offset : segment.offset + len(data)] = data
            total += len(data)
        return total


class EmulatedTier(Tier):
    """Another tier behind a link of known bandwidth and latency: what tests and ratios are made on.

    The link carries one read at a time; a read takes ``latency + bytes / bandwidth``.

    Args:
        inner: where the bytes come from.
        bandwidth: bytes per second.
        latency: seconds per read.
        clock: `VirtualClock` to take no real time.
        before: called with every blob before it is read; may sleep, or raise to make the read fail.
    """

    def __init__(
        self,
        inner: Tier,
        *,
        bandwidth: float = float("inf"),
        latency: float = 0.0,
        clock: Clock | None = None,
        before: Callable[[Blob], None] | None = None,
    ) -> None:
        self._inner, self._bandwidth, self._latency, self._before = inner, bandwidth, latency, before
        self._clock = clock if clock is not None else WallClock()
        self._free_at = 0.0
        self._lock = threading.Lock()

    def read(self, blob: Blob, buffer: memoryview) -> int:
        if self._before is not None:
            self._before(blob)
        count = self._inner.read(blob, buffer)
        with self._lock:
            start = max(self._clock.now(), self._free_at)
            self._free_at = start + self._latency + count / self._bandwidth
            done = self._free_at
        self._clock.sleep_until(done)
        return count

    def close(self) -> None:
        self._inner.close()
