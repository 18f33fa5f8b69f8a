import threading

import pytest

from coterie.errors import BudgetError, StoreError

SOON = 30.0


def test_resizing_keeps_serving(make_store):
    made = make_store(slots=6)
    made.drain(made.keys[0])
    for slots in (2, 1, 5, 9, 3):
        made.store.resize(slots)
        assert made.store.slots == slots
        made.store.check()
        assert sorted(made.drain(made.keys[0])) == made.keys[0]
        assert made.store.resident == min(slots, 8)
    with pytest.raises(BudgetError, match="a store needs one"):
        made.store.resize(0)


def test_reserved_memory_comes_back(make_store):
    made = make_store(slots=5)
    with made.store.reserve(2 * made.store.slot_bytes + 1) as reservation:
        assert made.store.slots == 2
        assert reservation.nbytes == 3 * made.store.slot_bytes
        made.store.resize(4)  # reserved ones included
        assert made.store.slots == 1
        with pytest.raises(BudgetError):
            made.store.reserve(1)
        made.drain(made.keys[0])
    reservation.release()
    assert made.store.slots == 4
    made.store.check()


def test_shrinking_waits_for_a_lease_of_another_thread(make_store):
    made = make_store(slots=2)
    lease = made.store.acquire(made.keys[0][:2], SOON)
    next(lease)
    thread = threading.Thread(target=made.store.resize, args=(1,))
    thread.start()
    next(lease)  # releases the first
    assert list(lease) == []
    thread.join(SOON)
    assert made.store.slots == 1
    made.store.check()


def test_shrinking_under_a_lease_of_this_thread_is_an_error(make_store):
    made = make_store(slots=2)
    with made.store.acquire(made.keys[0][:2], SOON) as one, made.store.acquire(made.keys[0][1:2], SOON) as two:
        next(one)
        next(two)
        with pytest.raises(StoreError, match="End them first"):
            made.store.resize(1)
        assert made.store.slots == 2
    made.store.resize(1)
    made.store.check()
