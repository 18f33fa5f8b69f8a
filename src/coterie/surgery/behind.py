"""Work that goes on behind: one other thread, one thing after another, and never much that waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from coterie.surgery.threads import one_thread

__all__ = ["Behind"]


class Behind:
    """One thread that does what it is given, in that order; used by one thread.

    After something failed nothing more is done, and the error comes out of the next call.

    Args:
        most: bytes that may wait to be worked on; whoever gives more waits until there is room.

    Attributes:
        held: most bytes of memory that were kept alive at once.
    """

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
        self._thread = one_thread("coterie-writer")
        self._waiting: deque[tuple[Future[None], int, int]] = deque()
        self._failed = False

    def do(self, work: Callable[[], None], nbytes: int = 0, held: int = 0) -> None:
        """Have ``work`` done on ``nbytes``, of which ``held`` are in memory until then. Blocks while too much waits.

        Raises:
            BaseException: what earlier work raised.
        """
        self._forget(self.most - nbytes)
        self._waiting.append((self._thread.submit(self._guarded, work), nbytes, held))
        self.held = max(self.held, sum(held for _, _, held in self._waiting))

    def finish(self) -> None:
        """Wait until all is done.

        Raises:
            BaseException: what the work raised.
        """
        self._forget(-1)

    def stop(self) -> None:
        """End the thread; what waits is dropped, what is in work is waited for."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._waiting.clear()

    def _forget(self, room: int) -> None:
        """Wait until at most ``room`` bytes wait (below zero: until nothing does)."""
        while self._waiting and (self._waiting[0][0].done() or room < 0 or self._bytes() > room):
            self._waiting[0][0].result()
            self._waiting.popleft()

    def _bytes(self) -> int:
        return sum(nbytes for _, nbytes, _ in self._waiting)

    def _guarded(self, work: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            work()
        except BaseException:
            self._failed = True
            raise
