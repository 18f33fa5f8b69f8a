"""Memory the store has lent to something else."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType


class Reservation:
    """Bytes that are free for a cache or workspace; `release`, or the end of a ``with`` block, returns them.

    Attributes:
        nbytes: how many, at least what was asked for.
    """

    def __init__(self, nbytes: int, give_back: Callable[[], None]) -> None:
        self.nbytes = nbytes
        self._give_back: Callable[[], None] | None = give_back

    def release(self) -> None:
        """Let the store use the memory again. Twice does no harm. Not thread-safe."""
        give_back, self._give_back, self.nbytes = self._give_back, None, 0
        if give_back is not None:
            give_back()

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
