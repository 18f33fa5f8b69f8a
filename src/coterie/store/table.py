"""Which expert is in which slot: a pure state machine, without threads, clock or I/O.

    FREE -> LOADING(key) -> READY(key, refs, last use) -> FREE

The store and the simulator drive the same table, so they take the same decisions.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from coterie.store.blob import Key
from coterie.store.policies import NEVER, Moment, Policy


class State(Enum):
    """Of a slot that is held; a free one has no entry."""

    LOADING = "loading"
    READY = "ready"


@dataclass(slots=True, eq=False)
class Entry:
    """One held slot.

    Attributes:
        refs: consumers that have it pinned.
        used_step: step of the last use, `NEVER` before the first.
        uses: pins since it was loaded.
        predicted: the plan says it will be used; goes out only for something nearer.
        prefetched: loaded by a hint and not used yet.
        value: whatever the owner attaches; dropped with the entry.
    """

    key: Key
    layer: int
    slot: int
    state: State = State.LOADING
    refs: int = 0
    used_step: int = NEVER
    uses: int = 0
    predicted: bool = False
    prefetched: bool = False
    value: Any = None


class SlotTable:
    """Slots and what they hold. Free + held = capacity, at every moment.

    Never evicted: what is pinned, loading, or wanted by somebody who has not had it yet.
    """

    def __init__(self, slots: int, policy: Policy) -> None:
        self.policy = policy
        self.evictions = 0
        self.limit = slots  # shrinking: while capacity is above it, nothing new is loaded
        self._slots = set(range(slots))
        self._free = list(range(slots - 1, -1, -1))
        self._entries: OrderedDict[Key, Entry] = OrderedDict()  # least recently used first
        self._wanted: dict[Key, int] = {}

    @property
    def capacity(self) -> int:
        return len(self._slots)

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Held slots, least recently used first."""
        return tuple(self._entries.values())

    def get(self, key: Key) -> Entry | None:
        return self._entries.get(key)

    def want(self, key: Key) -> None:
        """Somebody will pin ``key``: once resident it stays until then."""
        self._wanted[key] = self._wanted.get(key, 0) + 1

    def unwant(self, key: Key) -> bool:
        """Take back one `want`; True when nobody wants the key any more."""
        left = self._wanted[key] - 1
        if left:
            self._wanted[key] = left
        else:
            del self._wanted[key]
        return not left

    def is_wanted(self, key: Key) -> bool:
        return key in self._wanted

    def begin(self, key: Key, layer: int, now: Moment, *, prefetch: bool) -> Entry | None:
        """Give ``key`` a slot to be loaded into, evicting by the policy; None where nothing may go."""
        assert key not in self._entries, key
        if self.capacity > self.limit:
            return None
        if not self._free and not self._evict(now, layer if prefetch else None):
            return None
        entry = Entry(key, layer, self._free.pop(), predicted=prefetch, prefetched=prefetch)
        self._entries[key] = entry
        return entry

    def land(self, key: Key) -> Entry:
        """Its bytes have arrived."""
        entry = self._entries[key]
        assert entry.state is State.LOADING, entry
        entry.state = State.READY
        self._demote_unwanted(entry)
        return entry

    def abort(self, key: Key) -> None:
        """Its bytes will not arrive."""
        entry = self._entries.pop(key)
        assert entry.state is State.LOADING, entry
        self._free.append(entry.slot)

    def pin(self, key: Key, now: Moment) -> Entry:
        """Use a READY key that was wanted: it cannot go until `unpin`."""
        entry = self._entries[key]
        assert entry.state is State.READY, entry
        self.unwant(key)
        entry.refs += 1
        entry.uses += 1
        entry.used_step = now.step
        entry.predicted = entry.prefetched = False
        self._entries.move_to_end(key)
        return entry

    def unpin(self, key: Key) -> None:
        entry = self._entries[key]
        assert entry.refs > 0, entry
        entry.refs -= 1

    def foresee(self, key: Key) -> None:
        """The plan says this held key will be used."""
        self._entries[key].predicted = True

    def lapse(self, key: Key) -> None:
        """The plan no longer says so. What was fetched for it and never used goes first."""
        entry = self._entries.get(key)
        if entry is not None and entry.predicted:
            entry.predicted = False
            self._demote_unwanted(entry)

    def retire(self, now: Moment) -> int | None:
        """Take one slot out of service, free or evicted; None where none can go now. Returns its number."""
        if not self._free and not self._evict(now, None):
            return None
        slot = self._free.pop()
        self._slots.remove(slot)
        return slot

    def add(self, slot: int) -> None:
        """Put a slot into service."""
        assert slot not in self._slots, slot
        self._slots.add(slot)
        self._free.append(slot)

    def is_stuck(self) -> bool:
        """Nothing is free or arriving, and only a consumer's doing can change that."""
        return not self._free and not any(e.state is State.LOADING or self._may_go(e) for e in self._entries.values())

    def check(self) -> None:
        """Conservation and consistency, as assertions."""
        held = [entry.slot for entry in self._entries.values()]
        assert len(held) + len(self._free) == len(self._slots), (held, self._free, self._slots)
        assert {*held, *self._free} == self._slots, (held, self._free, self._slots)
        for key, entry in self._entries.items():
            assert entry.key == key, entry
            assert entry.refs >= 0, entry
            assert entry.state is State.READY or not entry.refs, entry
        assert all(count > 0 for count in self._wanted.values()), self._wanted

    def _evict(self, now: Moment, ahead: int | None) -> bool:
        """Free one slot for a demand, or (``ahead``) for a prefetch of that layer."""
        # a prefetch drops what its demand would drop later, so that reading early costs no further reads
        then = now if ahead is None else now.at(ahead)
        victim = self.policy.victim((e for e in self._candidates() if not e.predicted), then)
        if victim is None:
            predicted = (e for e in self._candidates() if e.predicted)
            victim = max(predicted, key=lambda entry: now.ahead(entry.layer), default=None)
            if victim is None or (ahead is not None and now.ahead(victim.layer) <= now.ahead(ahead)):
                return False
        assert self._may_go(victim), victim
        del self._entries[victim.key]
        self._free.append(victim.slot)
        self.evictions += 1
        return True

    def _candidates(self) -> Iterator[Entry]:
        return (entry for entry in self._entries.values() if self._may_go(entry))

    def _may_go(self, entry: Entry) -> bool:
        return entry.state is State.READY and not entry.refs and entry.key not in self._wanted

    def _demote_unwanted(self, entry: Entry) -> None:
        if entry.used_step == NEVER and not entry.predicted and entry.key not in self._wanted:
            self._entries.move_to_end(entry.key, last=False)
