"""Experts read from the checkpoint's own files, past the page cache."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

from coterie.errors import StoreError
from coterie.store.blob import ALIGNMENT, Blob, Segment
from coterie.store.tiers import Tier, check_length

# filesystems and platforms say in these ways that they have no direct reads
_NO_DIRECT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


class DiskTier(Tier):
    """Whole segments read straight into the slot, without the interpreter's lock.

    Direct reads (O_DIRECT) keep the page cache out of it: buffered, every byte would be held twice
    under a memory limit. Where the platform or the filesystem has none, reads are buffered and the
    cache is dropped behind them. Descriptors are opened at the first read of a file and shared.

    Args:
        direct: None tries direct reads file by file and falls back; True insists; False never tries.

    Raises:
        StoreError: from `read`, with the file's name: it is missing, too short, or the disk failed;
            or direct reads were insisted on and are not to be had.
    """

    def __init__(self, direct: bool | None = None) -> None:
        self._direct = direct
        self._files: dict[Path, tuple[int, bool]] = {}
        self._lock = threading.Lock()

    def is_direct(self, path: Path) -> bool:
        """Whether reads of ``path`` bypass the page cache, as far as is known; opens the file."""
        return self._open(path)[1]

    def read(self, blob: Blob, buffer: memoryview) -> int:
        return sum(self._read(segment, buffer) for segment in blob.segments)

    def close(self) -> None:
        """Close the descriptors. No read may be running."""
        with self._lock:
            files, self._files = self._files, {}
        for descriptor, _ in files.values():
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _read(self, segment: Segment, buffer: memoryview) -> int:
        target = buffer[segment.offset : segment.offset + segment.length]
        descriptor, direct = self._open(segment.path)
        try:
            try:
                count = _fill(descriptor, target, segment.start, direct)
            except OSError as error:
                if not direct or error.errno not in _NO_DIRECT:
                    raise
                descriptor, direct = self._reopen_buffered(segment.path, error)
                count = _fill(descriptor, target, segment.start, direct)
            if not direct:
                _drop_cache(descriptor, segment)
        except OSError as error:
            raise StoreError(f"{segment.path} cannot be read: {error.strerror}. Check the disk.") from error
        check_length(segment, count)
        return count

    def _open(self, path: Path) -> tuple[int, bool]:
        known = self._files.get(path)
        if known is not None:
            return known
        with self._lock:
            if path not in self._files:
                self._files[path] = self._open_new(path)
            return self._files[path]

    def _open_new(self, path: Path) -> tuple[int, bool]:
        flag = getattr(os, "O_DIRECT", 0)
        if self._direct is not False and flag:
            try:
                return os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag), True
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise _unopened(path, error) from error
        if self._direct:
            raise _no_direct(path)
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC), False
        except OSError as error:
            raise _unopened(path, error) from error

    def _reopen_buffered(self, path: Path, error: OSError) -> tuple[int, bool]:
        """Some filesystems open directly and refuse only the read."""
        if self._direct:
            raise _no_direct(path) from error
        with self._lock:
            descriptor, direct = self._files[path]
            if direct:
                fresh = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                # the same number goes on meaning the same file: another reader may be using it
                os.dup2(fresh, descriptor, inheritable=False)
                os.close(fresh)
                self._files[path] = (descriptor, False)
            return self._files[path]


def _fill(descriptor: int, target: memoryview, start: int, direct: bool) -> int:
    """Read until ``target`` is full or the file ends."""
    done = 0
    while done < len(target):
        count = os.preadv(descriptor, [target[done:]], start + done)
        done += count
        # a direct read that stops between blocks has met the end; some filesystems refuse to be asked on from there
        if count == 0 or (direct and done % ALIGNMENT):
            break
    return done


def _drop_cache(descriptor: int, segment: Segment) -> None:
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, segment.start, segment.length, os.POSIX_FADV_DONTNEED)


def _unopened(path: Path, error: OSError) -> StoreError:
    return StoreError(f"{path} cannot be opened: {error.strerror}. Has the checkpoint been moved or deleted?")


def _no_direct(path: Path) -> StoreError:
    return StoreError(f"The filesystem of {path} has no direct reads. Use DiskTier() to fall back to buffered ones.")
