"""Reads that are asked for and not begun: demands before prefetches."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from coterie.store.blob import Key


class ReadQueue:
    """Two levels. A key is in it once; a prefetch that comes to be needed is promoted in place."""

    def __init__(self) -> None:
        self._demand: dict[Key, None] = {}
        self._prefetch: dict[Key, None] = {}

    def __len__(self) -> int:
        return len(self._demand) + len(self._prefetch)

    def __contains__(self, key: object) -> bool:
        return key in self._demand or key in self._prefetch

    def demand(self, key: Key) -> None:
        """Ask for a key that somebody waits for, behind the other demands."""
        self._prefetch.pop(key, None)
        self._demand[key] = None

    def prefetch(self, key: Key) -> None:
        """Ask for a key that will be used, behind the others; nothing where it is asked for already."""
        if key not in self._demand:
            self._prefetch[key] = None

    def head(self, distance: Callable[[Key], int]) -> tuple[Key, bool] | None:
        """The next key and whether it is a prefetch: demands as asked for, then the nearest prefetch."""
        if self._demand:
            return next(iter(self._demand)), False
        if self._prefetch:
            return min(self._prefetch, key=distance), True
        return None

    def remove(self, key: Key) -> None:
        """It is begun, or nobody wants it any more."""
        self._demand.pop(key, None)
        self._prefetch.pop(key, None)

    def cancel(self, keys: Iterable[Key] | None = None) -> None:
        """Forget prefetches, all or these; demands stay."""
        for key in tuple(self._prefetch) if keys is None else keys:
            self._prefetch.pop(key, None)
