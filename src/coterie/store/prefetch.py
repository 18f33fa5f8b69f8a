"""Predictor, governor and store in a row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from coterie.store.base import Store
from coterie.store.governor import Governor
from coterie.store.predict import Predictor


class Prefetcher:
    """Hints the store after each layer, while the governor finds that it pays. Not thread-safe.

    Args:
        store: to be hinted.
        predictor: what comes next.
        last_site: the layer that ends a step.
        governor: None always reads ahead.
    """

    def __init__(self, store: Store, predictor: Predictor, last_site: str, governor: Governor | None = None) -> None:
        self._store, self._predictor, self._governor, self._last_site = store, predictor, governor, last_site
        self._stall = 0.0

    def after(self, site: str, needed: Sequence[int], x: Tensor | None = None) -> None:
        """Layer ``site`` has asked for ``needed`` (distinct expert ids); call it inside or after its lease."""
        keys = self._predictor.after(site, needed, x)
        if self._governor is None or self._governor.on:
            self._store.hint(keys)
        if self._governor is not None and site == self._last_site:
            self._governor.observe(self._stall_since())

    def _stall_since(self) -> float:
        """Seconds of stall since the last call; a reset of the statistics counts as zero."""
        before, self._stall = self._stall, self._store.stats().stall_seconds
        return max(0.0, self._stall - before)
