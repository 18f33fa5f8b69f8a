"""Coterie without overlap: a layer's experts are all read before any of them computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def load_then_compute(store: Any) -> None:
    """Change a store so that acquiring blocks until everything asked for has been read. Same reads, same bits."""
    acquire = store.acquire

    def blocking(keys: Iterable[Any], deadline: float | None = None) -> Any:
        wanted = tuple(keys)
        with acquire(wanted, deadline) as lease:
            for _ in lease:
                pass
        return acquire(wanted, deadline)

    store.acquire = blocking
