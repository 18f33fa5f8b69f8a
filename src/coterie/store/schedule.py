"""What is read when, and what goes for it: table, queue and plan together, pure.

`Store` runs this under a lock with real readers, `simulate` runs it on a virtual clock. Nothing in
here knows which.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from coterie.store.blob import Key
from coterie.store.policies import Moment, Policy, as_policy
from coterie.store.queue import ReadQueue
from coterie.store.stats import Counters
from coterie.store.table import Entry, SlotTable, State


class Read(NamedTuple):
    """A read that has its slot and must be ended by `Schedule.landed` or `Schedule.failed`."""

    key: Key
    slot: int
    prefetch: bool


class Schedule:
    """Decisions of one store. Not thread-safe.

    Args:
        slots: capacity.
        policy: who goes, by name or itself.
        on_event: called with the table after every change of it: the place for invariants.
    """

    def __init__(
        self, slots: int, policy: str | Policy = "stale-first", on_event: Callable[[SlotTable], None] | None = None
    ) -> None:
        self.table = SlotTable(slots, as_policy(policy))
        self.queue = ReadQueue()
        self.counters = Counters()
        self.now = Moment(0, -1, 1)
        self._layer: dict[Key, int] = {}
        self._layers: set[int] = set()
        self._plan: dict[int, dict[Key, None]] = {}
        self._on_event = on_event

    def register(self, key: Key, layer: int) -> None:
        """Make ``key`` known as an expert of ``layer``."""
        self._layer[key] = layer
        self._layers.add(layer)
        self.now = self.now._replace(layers=max(self._layers) + 1)

    def __contains__(self, key: object) -> bool:
        return key in self._layer

    def layer(self, key: Key) -> int:
        """The layer ``key`` was registered with."""
        return self._layer[key]

    def step(self) -> None:
        """A forward pass has ended. Without this call a step ends where the layer number falls back."""
        self.now = self.now._replace(step=self.now.step + 1, layer=-1)

    def arrive(self, keys: Sequence[Key]) -> list[Key]:
        """The model needs ``keys``, each once, now. Returns the resident ones; the others are queued.

        Every key is wanted until `pin` or `withdraw`. Predictions for this layer end here.
        """
        if not keys:
            return []
        self._advance(min(self._layer[key] for key in keys))
        ready = [key for key in keys if self._need(key)]
        for key in self._plan.pop(self.now.layer, ()):
            if not self.table.is_wanted(key):
                self.queue.cancel([key])
                self.table.lapse(key)
        self._event()
        return ready

    def next_read(self) -> Read | None:
        """Begin the most urgent read that has a slot; None when there is none or nothing may go for it."""
        head = self.queue.head(self._distance)
        if head is None:
            return None
        key, prefetch = head
        entry = self.table.begin(key, self._layer[key], self.now, prefetch=prefetch)
        if entry is None:
            return None
        self.queue.remove(key)
        self.counters.prefetches += prefetch
        self._event()
        return Read(key, entry.slot, prefetch)

    def landed(self, key: Key) -> Entry:
        """The read has ended well."""
        entry = self.table.land(key)
        self._event()
        return entry

    def failed(self, key: Key) -> None:
        """The read has failed; its slot is free again. Who wants the key must withdraw or ask again."""
        self.table.abort(key)
        self.counters.failed += 1
        self._event()

    def pin(self, key: Key) -> Entry:
        """Use a resident key that `arrive` was told of."""
        entry = self.table.get(key)
        assert entry is not None, key
        self.counters.useful += entry.prefetched
        self.table.pin(key, self.now)
        self._event()
        return entry

    def unpin(self, key: Key) -> None:
        """End one use."""
        self.table.unpin(key)
        self._event()

    def withdraw(self, key: Key) -> None:
        """Who needed ``key`` does so no longer and has not pinned it."""
        if self.table.unwant(key):
            self.queue.remove(key)
        self._event()

    def hint(self, keys: Iterable[Key]) -> None:
        """``keys`` will be needed: the nearest layer first, in the order given within a layer."""
        for key in keys:
            if self.table.is_wanted(key):
                continue
            self._plan.setdefault(self._layer[key], {})[key] = None
            if self.table.get(key) is None:
                self.queue.prefetch(key)
            else:
                self.table.foresee(key)
        self._event()

    def cancel(self, keys: Iterable[Key] | None = None) -> None:
        """Forget hints, all or these. What is being read lands and is the first to go."""
        dropped = [key for plan in self._plan.values() for key in plan] if keys is None else list(keys)
        self.queue.cancel(dropped)
        for key in dropped:
            self._plan.get(self._layer[key], {}).pop(key, None)
            self.table.lapse(key)
        self._event()

    def retire(self) -> int | None:
        """Take one slot out of service, or None where none can go now."""
        slot = self.table.retire(self.now)
        self._event()
        return slot

    def add(self, slot: int) -> None:
        """Put a slot into service."""
        self.table.add(slot)
        self._event()

    def _advance(self, layer: int) -> None:
        wraps = layer < self.now.layer or (layer == self.now.layer and len(self._layers) == 1)
        self.now = self.now._replace(step=self.now.step + wraps, layer=layer)

    def _need(self, key: Key) -> bool:
        """Want ``key``, count it, queue it where it is missing; True where it is resident."""
        table, row = self.table, self.counters.layer(self._layer[key])
        entry, shared = table.get(key), table.is_wanted(key)
        table.want(key)
        if entry is not None and entry.state is State.READY:
            row.hits += 1
            return True
        if entry is None:
            self.queue.demand(key)
        if entry is not None or shared:
            row.late += 1
        else:
            row.misses += 1
        return False

    def _distance(self, key: Key) -> int:
        return self.now.ahead(self._layer[key])

    def _event(self) -> None:
        if self._on_event is not None:
            self._on_event(self.table)
