"""The store: experts in slots, read when needed, beside the compute of those that are there."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType

from coterie.errors import BudgetError, StoreError
from coterie.store.arena import Arena
from coterie.store.blob import Blob, Key
from coterie.store.desk import Desk
from coterie.store.disk import DiskTier
from coterie.store.lease import Lease
from coterie.store.policies import Policy
from coterie.store.readers import start_readers
from coterie.store.reservation import Reservation
from coterie.store.schedule import Schedule
from coterie.store.stats import Counters, StoreStats
from coterie.store.table import SlotTable
from coterie.store.tiers import Tier
from coterie.units import format_bytes


class Store:
    """Holds at most ``slots`` experts and reads the others when they are acquired. Exact: it moves bytes.

    Thread-safe. All decisions are taken under one lock that is never held during a read; reads are
    done by ``readers`` daemon threads. Use it in a ``with`` block, or `close` it.

    Args:
        slots: experts held at once, at least one.
        slot_bytes: the largest `Blob.slot_bytes` that will be registered.
        tier: where experts are read from; the store closes it. None reads files (`DiskTier`).
        policy: who goes when a slot is needed: a name of `policies.POLICIES`, or a policy.
        readers: reads at once. One saturates most disks.
        on_event: called under the lock with the table after each of its changes; for invariants.

    Raises:
        BudgetError: no slot, or more memory than the machine gives.
        OptionError: no policy has that name, or there is no reader.
    """

    def __init__(
        self,
        slots: int,
        slot_bytes: int,
        tier: Tier | None = None,
        *,
        policy: str | Policy = "stale-first",
        readers: int = 1,
        on_event: Callable[[SlotTable], None] | None = None,
    ) -> None:
        self._arena = Arena(slots, slot_bytes)
        self._tier = tier if tier is not None else DiskTier()
        self._blobs: dict[Key, Blob] = {}
        self._schedule = Schedule(slots, policy, on_event)
        self._desk = Desk(self._schedule)
        self._idle: list[int] = []  # slots that have addresses, but no memory and no place in the table
        self._reserved = 0
        self._resizing = threading.Lock()
        self._readers = start_readers(readers, self._desk, self._tier, self._arena, self._blobs)
        # readers know the desk, not the store: a store that is forgotten ends them
        self._shut = weakref.finalize(self, self._desk.shut)
        self._shut.atexit = False

    @property
    def slots(self) -> int:
        """Slots in service."""
        return self._schedule.table.capacity

    @property
    def resident(self) -> int:
        """Slots that hold an expert or are being filled."""
        with self._desk.lock:
            return self._schedule.table.capacity - self._schedule.table.free

    @property
    def slot_bytes(self) -> int:
        """Memory of one slot."""
        return self._arena.slot_bytes

    def register(self, key: Key, blob: Blob, *, layer: int) -> None:
        """Record where an expert lies and which layer uses it. Reads nothing.

        Raises:
            StoreError: the blob does not fit a slot, or the key is taken.
        """
        if blob.slot_bytes > self.slot_bytes:
            raise StoreError(
                f"{key} needs a slot of {format_bytes(blob.slot_bytes)}, this store's have "
                f"{format_bytes(self.slot_bytes)}. Make the store with slot_bytes={blob.slot_bytes} or more."
            )
        with self._desk.lock:
            if key in self._blobs:
                raise StoreError(f"{key} is registered already. Register each expert once.")
            self._blobs[key] = blob
            self._schedule.register(key, layer)

    def acquire(self, keys: Iterable[Key], deadline: float | None = None) -> Lease:
        """The only way to touch weights: a `Lease` over ``keys``, each yielded once. Does not block.

        Experts that are missing are asked for at once, so that reading them runs beside the compute
        of those that are there. Each is read at most once for this lease, however few slots there are.
        The weights never require grad, and what autograd would save of them is gone after their turn:
        acquire under ``torch.no_grad()``.

        Args:
            keys: of one layer; duplicates count once.
            deadline: seconds from now that the lease may wait; None is for ever.

        Raises:
            StoreError: the store is closed, or a key is not registered.
        """
        return self._desk.open(self._known(dict.fromkeys(keys)), deadline)

    def hint(self, keys: Iterable[Key]) -> None:
        """These will be needed: read them when nothing is waited for. Does not block.

        The nearest layer goes first, in the order given inside a layer. Nothing that is needed, and
        nothing predicted for a nearer layer, is dropped for a hint.

        Raises:
            StoreError: the store is closed, or a key is not registered.
        """
        known = self._known(keys)
        with self._desk.lock:
            self._desk.check_open()
            self._schedule.hint(known)
            self._desk.wake_readers()

    def cancel(self, keys: Iterable[Key] | None = None) -> None:
        """Take back hints, all or these. A read that has begun ends, and its expert is the first to go."""
        known = None if keys is None else self._known(keys)
        with self._desk.lock:
            self._schedule.cancel(known)

    def step(self) -> None:
        """Say that a forward pass has ended. Without it, one ends where the layer number falls back."""
        with self._desk.lock:
            self._schedule.step()

    def resize(self, slots: int, deadline: float | None = None) -> None:
        """Hold ``slots`` experts from now on, reserved ones included. Blocks while leases hold too many.

        Memory of slots that go is given back to the machine before this returns.

        Raises:
            BudgetError: less than one slot would be left beside what is reserved, or the machine
                does not give so much.
            StoreError: the slots were not released within ``deadline`` seconds, or this thread itself
                holds them. Some experts may have been dropped, nothing else has changed.
        """
        with self._resizing:
            self._set_capacity(slots - self._reserved, deadline)

    def reserve(self, nbytes: int, deadline: float | None = None) -> Reservation:
        """Give back slots so that ``nbytes`` are free for something else, until the handle is released.

        Raises:
            BudgetError, StoreError: as `resize`.
        """
        count = -(-nbytes // self.slot_bytes)
        with self._resizing:
            self._set_capacity(self.slots - count, deadline)
            self._reserved += count
        return Reservation(count * self.slot_bytes, lambda: self._return(count))

    def stats(self) -> StoreStats:
        """What was counted since the store was made or `reset_stats`."""
        with self._desk.lock:
            return self._schedule.counters.freeze(self._schedule.table.evictions)

    def reset_stats(self) -> None:
        """Count from zero."""
        with self._desk.lock:
            self._schedule.counters = Counters(self._schedule.table.evictions)

    def check(self) -> None:
        """Conservation and consistency of the slot table, as assertions."""
        with self._resizing, self._desk.lock:
            self._schedule.table.check()
            assert self._desk.closed or self.slots + len(self._idle) == self._arena.slots, (self.slots, self._idle)

    def close(self) -> None:
        """End the readers and the tier; waiting leases raise. Blocks for the reads that run. Twice does no harm.

        Memory goes back to the machine when the last tensor that a lease has handed out is gone.
        """
        self._shut()
        for reader in self._readers:
            reader.join()
        self._tier.close()
        with self._resizing:
            self._arena.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _known(self, keys: Iterable[Key]) -> tuple[Key, ...]:
        known = tuple(keys)
        for key in known:
            if key not in self._blobs:
                raise StoreError(f"{key} is not registered. Call store.register(key, blob, layer=...) first.")
        return known

    def _set_capacity(self, slots: int, deadline: float | None) -> None:
        self._desk.check_open()
        if slots < 1:
            raise BudgetError(f"{slots} slots would be left, a store needs one. Reserve less, or resize to more.")
        if slots > self.slots:
            self._grow(slots - self.slots)
            return
        retired = self._desk.retire(slots, deadline)
        for slot in retired:
            self._arena.discard(slot)
        self._idle += retired

    def _grow(self, count: int) -> None:
        if (missing := count - len(self._idle)) > 0:
            self._idle += self._arena.grow(missing)
        self._desk.put([self._idle.pop() for _ in range(count)])

    def _return(self, count: int) -> None:
        with self._resizing:
            self._reserved -= count
            if not self._desk.closed:
                self._grow(count)
