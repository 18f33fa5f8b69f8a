"""Where experts live: in a bounded number of slots, read from the checkpoint's own files when needed.

`Store` is the room's door: register blobs, acquire leases, hint what comes next. Behind it, `schedule`
(with `table`, `queue`, `policies`) takes every decision without threads or I/O, so that `simulate` can
replay it on a virtual clock; `tiers` and `disk` bring bytes; `predict`, `governor` and `prefetch` read
ahead where that pays. Everything here is exact: it decides when bytes move, never what comes out.
"""

from coterie.store.base import Store
from coterie.store.blob import Blob, Key
from coterie.store.clock import Clock, VirtualClock, WallClock
from coterie.store.disk import DiskTier
from coterie.store.experts import StoreExperts
from coterie.store.governor import Governor
from coterie.store.lease import Lease
from coterie.store.policies import POLICIES, Belady, Policy
from coterie.store.predict import PREDICTORS, Noisy, Oracle, Predictor
from coterie.store.prefetch import Prefetcher
from coterie.store.reservation import Reservation
from coterie.store.simulate import Costs, Outcome, belady_loads, simulate
from coterie.store.stats import LayerStats, StoreStats
from coterie.store.tiers import EmulatedTier, MemoryTier, Tier

__all__ = [
    "POLICIES",
    "PREDICTORS",
    "Belady",
    "Blob",
    "Clock",
    "Costs",
    "DiskTier",
    "EmulatedTier",
    "Governor",
    "Key",
    "LayerStats",
    "Lease",
    "MemoryTier",
    "Noisy",
    "Oracle",
    "Outcome",
    "Policy",
    "Predictor",
    "Prefetcher",
    "Reservation",
    "Store",
    "StoreExperts",
    "StoreStats",
    "Tier",
    "VirtualClock",
    "WallClock",
    "belady_loads",
    "simulate",
]
