"""The right to use some experts for a while."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING

from torch import Tensor

from coterie.errors import StoreError
from coterie.store.blob import Key

if TYPE_CHECKING:
    from coterie.store.desk import Desk


class Lease(Iterator[tuple[Key, dict[str, Tensor]]]):
    """Yields each acquired expert once, with its weights: residents first, then as they arrive.

    An expert is pinned from when it is yielded until the next one is asked for, or the lease ends;
    **its tensors must not be used after that**, their memory goes to another expert. So a lease over
    more experts than there are slots works through them in waves, and one slot is enough.

    Use it in a ``with`` block, or run it to its end: an abandoned lease keeps what it has not yielded
    in the store. One thread may use a lease at a time.

    Attributes:
        pending: keys not yielded yet, the ready ones included.
        ready: those of them that are resident.
        current: the key that is pinned.
        error: why one of the reads failed.
        thread: who acquired it.
    """

    def __init__(self, desk: Desk, keys: Sequence[Key], ready: Sequence[Key], deadline: float | None) -> None:
        self.pending = dict.fromkeys(keys)
        self.ready = deque(ready)
        self.current: Key | None = None
        self.error: StoreError | None = None
        self.thread = threading.get_ident()
        self._expires = None if deadline is None else perf_counter() + deadline
        self._desk = desk

    def __next__(self) -> tuple[Key, dict[str, Tensor]]:
        """The next expert; blocks until one is resident.

        Raises:
            StoreError: its read failed, the deadline has passed, the store was closed, or this very
                thread holds every slot by another lease. The lease has ended then.
        """
        item = self._desk.next_item(self)
        if item is None:
            raise StopIteration
        return item

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release what is pinned and give up the rest. Twice does no harm."""
        self._desk.end(self)

    def remaining(self) -> float | None:
        """Seconds until the deadline, None without one."""
        return None if self._expires is None else self._expires - perf_counter()
