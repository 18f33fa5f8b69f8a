"""Name -> object, with near misses suggested when the name is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from coterie.errors import OptionError

T = TypeVar("T")


def did_you_mean(found: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`` Did you mean 'x'?`` of the known name nearest to what was found; "" where none is near.

    Args:
        cutoff: how alike it must be, from 0 to 1.
    """
    near = difflib.get_close_matches(str(found), list(known), n=1, cutoff=cutoff)
    return f" Did you mean {near[0]!r}?" if near else ""


class Registry(Generic[T]):
    """Named choices of one kind, such as cache policies.

    Filled at import time by `register`, read afterwards; reading is thread-safe.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files its object under ``name``. A name is taken once."""
        assert name not in self._items, f"{self.kind} {name!r} is registered twice"

        def put(item: T) -> T:
            self._items[name] = item
            return item

        return put

    def get(self, name: str) -> T:
        """The object called ``name``.

        Raises:
            OptionError: no such name; the text lists what there is and the nearest miss.
        """
        if name in self._items:
            return self._items[name]
        raise OptionError(
            f"There is no {self.kind} {name!r}.{did_you_mean(name, self._items)} There are: {', '.join(self)}."
        )

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __contains__(self, name: object) -> bool:
        return name in self._items
