"""What goes wrong is told to who waits, and the store goes on."""

import gc
import threading
import weakref

import pytest

from coterie.errors import StoreError
from coterie.store import EmulatedTier, MemoryTier, Store

SOON = 30.0  # seconds: a deadline no test should meet


class Fault:
    """Makes reads fail while it is on."""

    def __init__(self, error):
        self.error = error
        self.on = True

    def __call__(self, tier):
        return EmulatedTier(tier, before=self.strike)

    def strike(self, blob):
        if self.on:
            raise self.error


def test_a_deadline_raises_and_the_store_goes_on(make_store, reads_held):
    gate = reads_held()
    made = make_store(make_tier=gate)
    with pytest.raises(StoreError, match=r"deadline.*Allow more seconds"):
        list(made.store.acquire(made.keys[0][:2], 0.01))
    gate.opened.set()
    assert len(made.drain(made.keys[0][:2])) == 2


@pytest.mark.parametrize("error", [StoreError("disk.bin cannot be read"), ValueError("disk.bin is odd")])
def test_a_failed_read_raises_on_the_lease_and_can_be_tried_again(make_store, error):
    fault = Fault(error)
    made = make_store(slots=2, make_tier=fault)
    for _ in range(5):
        with pytest.raises(StoreError, match=r"disk\.bin"):
            made.drain(made.keys[0][:3])
    fault.on = False
    assert len(made.drain(made.keys[0][:3])) == 3
    assert made.store.stats().failed >= 5
    made.store.check()


def test_a_failed_hint_troubles_nobody(make_store):
    fault = Fault(StoreError("disk.bin cannot be read"))
    made = make_store(layers=2, make_tier=fault)
    made.store.hint(made.keys[0][:2])
    made.until(lambda: made.store.stats().failed == 2)
    fault.on = False
    assert len(made.drain(made.keys[0][:2])) == 2


def test_a_thread_that_would_wait_for_itself_is_told(make_store):
    made = make_store(slots=1)
    with made.store.acquire(made.keys[0][:1], SOON) as outer:
        next(outer)
        with pytest.raises(StoreError, match="wait for itself"):
            list(made.store.acquire(made.keys[0][1:2]))
    assert made.drain(made.keys[0][1:2])


def test_a_closed_store_says_so(make_store):
    made = make_store()
    lease = made.store.acquire(made.keys[0][:1])
    made.store.close()
    made.store.close()
    for act in (lease.__next__, lambda: made.store.acquire(made.all), lambda: made.store.hint(made.all)):
        with pytest.raises(StoreError, match="closed"):
            act()
    with pytest.raises(StoreError, match="closed"):
        made.store.resize(2)
    lease.close()


def test_closing_wakes_who_waits(make_store, reads_held):
    gate = reads_held()
    made = make_store(make_tier=gate)
    said = []

    def wait():
        try:
            list(made.store.acquire(made.all))
        except StoreError as error:
            said.append(str(error))

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert gate.begun.wait(SOON)
    closer = threading.Thread(target=made.store.close)
    closer.start()
    waiter.join(SOON)
    gate.opened.set()
    closer.join(SOON)
    assert "closed" in said[0]
    assert not any(reader.is_alive() for reader in made.store._readers)


def test_a_forgotten_store_ends_its_readers():
    store = Store(1, 4096, MemoryTier({}))
    gone, readers = weakref.ref(store), store._readers
    del store
    gc.collect()
    assert gone() is None
    for reader in readers:
        reader.join(SOON)
        assert not reader.is_alive()
