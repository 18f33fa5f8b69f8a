"""Where consumers and readers meet: the schedule under one lock, and who waits for what."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

from torch import Tensor

from coterie.errors import StoreError
from coterie.store.blob import Key
from coterie.store.lease import Lease
from coterie.store.schedule import Read, Schedule


class Desk:
    """The store's threads' side. Every method takes the lock; none does I/O under it.

    Attributes:
        schedule: touch it only under `lock`.
        lock: re-entrant, since a garbage collection in a locked section may close a forgotten store.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.lock = threading.RLock()
        self.closed = False
        self._work = threading.Condition(self.lock)  # for readers: something may be begun
        self._changed = threading.Condition(self.lock)  # for consumers: something landed, failed or was freed
        self._leases: dict[Lease, None] = {}

    def open(self, keys: Sequence[Key], deadline: float | None) -> Lease:
        """A lease over distinct ``keys``; the missing ones are asked for."""
        with self.lock:
            self.check_open()
            ready = self.schedule.arrive(keys)
            lease = Lease(self, keys, ready, deadline)
            if keys:
                self._leases[lease] = None
            if len(ready) < len(keys):
                self._work.notify_all()
        return lease

    def next_item(self, lease: Lease) -> tuple[Key, dict[str, Tensor]] | None:
        """Release the lease's pinned key and pin its next, waiting for one; None when there is no more."""
        with self.lock:
            self._release(lease)
            if not lease.pending:
                self._leases.pop(lease, None)
                return None
            if not lease.ready or self.closed:
                self._wait(lease)
            key = lease.ready.popleft()
            entry = self.schedule.pin(key)
            del lease.pending[key]
            lease.current = key
            return key, dict(entry.value)

    def end(self, lease: Lease) -> None:
        """Release what the lease has pinned and withdraw what it has not."""
        with self.lock:
            self._release(lease)
            if lease in self._leases:
                del self._leases[lease]
                for key in lease.pending:
                    self.schedule.withdraw(key)
                self._freed()
            lease.pending.clear()
            lease.ready.clear()

    def check_open(self) -> None:
        if self.closed:
            raise StoreError("The store is closed. Make a new one.")

    def wake_readers(self) -> None:
        """Something was queued, or slots were added."""
        with self.lock:
            self._work.notify_all()

    def next_read(self) -> Read | None:
        """For a reader: what to read next; blocks. None when the store is closed."""
        with self.lock:
            while not self.closed:
                read = self.schedule.next_read()
                if read is not None:
                    return read
                self._work.wait()
            return None

    def landed(self, read: Read, value: dict[str, Tensor], count: int, seconds: float) -> None:
        """For a reader: ``read`` has brought ``count`` bytes in so many seconds."""
        with self.lock:
            self.schedule.counters.add_read(read.prefetch, count, seconds)
            self.schedule.landed(read.key).value = value
            for lease in self._leases:
                if read.key in lease.pending:
                    lease.ready.append(read.key)
            self._changed.notify_all()

    def failed(self, read: Read, error: StoreError) -> None:
        """For a reader: ``read`` has failed; everybody who waits for it raises."""
        with self.lock:
            self.schedule.failed(read.key)
            for lease in self._leases:
                if read.key in lease.pending:
                    lease.error = error
            self._changed.notify_all()

    def retire(self, slots: int, deadline: float | None) -> list[int]:
        """Take slots out of service until ``slots`` are left; blocks while leases hold too many.

        Raises:
            StoreError: the deadline passed, the store was closed, or only this thread could release
                them. All slots are in service again then.
        """
        expires = None if deadline is None else perf_counter() + deadline
        retired: list[int] = []
        with self.lock, self._shrinking(slots, retired):
            while self.schedule.table.capacity > slots:
                slot = self.schedule.retire()
                if slot is not None:
                    retired.append(slot)
                    continue
                self.check_open()
                left = None if expires is None else expires - perf_counter()
                if self._waits_for_itself(threading.get_ident()) or (left is not None and left <= 0):
                    raise StoreError(f"Leases hold more than {slots} slots. End them first, or allow more seconds.")
                self._changed.wait(left)
            self._work.notify_all()
        return retired

    def put(self, slots: Sequence[int]) -> None:
        """Put slots into service."""
        with self.lock:
            for slot in slots:
                self.schedule.add(slot)
            self.schedule.table.limit = self.schedule.table.capacity
            self._work.notify_all()

    def shut(self) -> None:
        """End the readers; waiting consumers raise. Weights are let go of as their leases end."""
        with self.lock:
            self.closed = True
            for entry in self.schedule.table.entries:
                entry.value = None
            self._work.notify_all()
            self._changed.notify_all()

    def _release(self, lease: Lease) -> None:
        if lease.current is not None:
            self.schedule.unpin(lease.current)
            lease.current = None
            self._freed()

    def _freed(self) -> None:
        """Something may be evicted now: tell who waits for a slot."""
        table = self.schedule.table
        if len(self.schedule.queue):
            self._work.notify_all()
        if table.capacity > table.limit:
            self._changed.notify_all()

    @contextmanager
    def _shrinking(self, slots: int, retired: list[int]) -> Iterator[None]:
        """While this lasts nothing new is loaded; a failure puts the retired slots back."""
        self.schedule.table.limit = slots
        try:
            yield
        except BaseException:
            self.put(retired)
            raise

    def _wait(self, lease: Lease) -> None:
        """Until the lease has something ready; a lease that has no hope of it ends and raises."""
        begin, layer = perf_counter(), self.schedule.layer(next(iter(lease.pending)))
        try:
            while not lease.ready or self.closed:
                self._check_hope(lease)
                self._changed.wait(lease.remaining())
        except BaseException:
            self.end(lease)
            raise
        finally:
            self.schedule.counters.layer(layer).stall_seconds += perf_counter() - begin

    def _check_hope(self, lease: Lease) -> None:
        self.check_open()
        if lease.error is not None:
            raise StoreError(str(lease.error)) from lease.error
        remaining, slots = lease.remaining(), self.schedule.table.capacity
        if remaining is not None and remaining <= 0:
            raise StoreError(
                f"The deadline passed with {len(lease.pending)} experts still to come. Allow more seconds, or give the "
                f"store more than {slots} slots."
            )
        if self._waits_for_itself(lease.thread):
            raise StoreError(
                f"This thread holds all {slots} slots by another lease and would wait for itself. End that lease "
                "first, or give the store more slots."
            )

    def _waits_for_itself(self, thread: int) -> bool:
        """Every slot is held, and by leases of this thread alone."""
        return self.schedule.table.is_stuck() and all(lease.thread == thread for lease in self._leases)
