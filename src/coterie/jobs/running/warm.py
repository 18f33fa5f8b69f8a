"""A store that begins with the experts that a text used most, by statistics of it. Exact: only the time changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from coterie.models.checkpoint import Checkpoint
from coterie.models.statistics import Statistics
from coterie.store import POLICIES, Key, Policy, Store
from coterie.store.policies import LFU

__all__ = ["checked_statistics", "fill", "most_used", "primed", "rates"]

# tokens that the statistics count for beside those of the present text, in the policy that goes by frequency
_CREDIT = 32


def checked_statistics(statistics: str | Path | Statistics, checkpoint: Checkpoint) -> Statistics:
    """The statistics, read where a file is named.

    Raises:
        CheckpointError: the file is missing or damaged, or of another model.
    """
    found = statistics if isinstance(statistics, Statistics) else Statistics.load(statistics)
    found.check(checkpoint)
    return found


def rates(checkpoint: Checkpoint, statistics: Statistics) -> dict[Key, float]:
    """Expert -> share of the tokens that used it, 0 to 1; of layers that nothing came to, 0."""
    found = {}
    for site in checkpoint.sites:
        known = statistics.sites.get(site.name)
        for expert in range(site.num_experts):
            used = 0.0 if known is None or not known.tokens else float(known.usage[expert]) / known.tokens
            found[Key(site.name, expert)] = min(1.0, used)
    return found


def most_used(rates: Mapping[Key, float], slots: int) -> list[Key]:
    """The ``slots`` experts of the highest rate, fewer where fewer were used at all; the first of equals."""
    used = [key for key, rate in rates.items() if rate > 0]
    return sorted(used, key=lambda key: -rates[key])[:slots]


def primed(policy: str, rates: Mapping[Key, float]) -> Policy:
    """The policy of that name; one that counts uses begins with those the statistics foretell."""
    made = POLICIES.get(policy)
    return LFU({key: _CREDIT * rate for key, rate in rates.items()}) if made is LFU else made()


def fill(store: Store, keys: list[Key], layers: Mapping[str, int]) -> int:
    """Read ``keys`` into the store, layer after layer, and count from zero afterwards. Blocks.

    Returns the bytes read.

    Raises:
        StoreError: a read failed.
    """
    by_layer: dict[int, list[Key]] = defaultdict(list)
    for key in keys:
        by_layer[layers[key.site]].append(key)
    for layer in sorted(by_layer):
        with store.acquire(by_layer[layer]) as lease:
            for _ in lease:
                pass
    store.step()
    read = store.stats().bytes_read
    store.reset_stats()
    return read
