import threading
from pathlib import Path

import pytest

from coterie.errors import BudgetError, OptionError, StoreError
from coterie.ranges import TensorRange
from coterie.store import Blob, Key, Store, simulate, traces

SOON = 30.0  # seconds: a deadline no test should meet


def test_every_key_comes_once_with_its_own_weights(make_store):
    made = make_store(slots=4, experts=8)
    assert sorted(made.drain([*made.keys[0], made.keys[0][0]])) == made.keys[0]
    stats = made.store.stats()
    assert (stats.hits, stats.late, stats.misses, stats.evictions) == (0, 0, 8, 4)
    assert len(made.reads) == 8


def test_one_slot_serves_64_keys(make_store):
    made = make_store(slots=1, experts=64)
    assert sorted(made.drain(made.keys[0])) == made.keys[0]
    assert len(made.reads) == 64
    made.store.check()


def test_residents_come_first_and_are_not_read_again(make_store):
    made = make_store(slots=4, experts=8)
    keys = made.keys[0]
    made.drain(keys[:3])
    assert made.drain([keys[7], keys[2], keys[1]])[:2] == [keys[2], keys[1]]
    assert len(made.reads) == 4
    assert made.store.stats().hits == 2
    assert made.store.resident == 4


def test_missing_ones_are_read_while_residents_compute(make_store, reads_held):
    gate = reads_held()
    made = make_store(slots=4, make_tier=gate)
    gate.opened.set()
    made.drain(made.keys[0][:1])
    gate.opened.clear()
    gate.begun.clear()
    with made.store.acquire(made.keys[0][:2], SOON) as lease:
        assert next(lease)[0] == made.keys[0][0]
        assert gate.begun.wait(SOON)  # the other read runs, though nobody waits for it yet
        gate.opened.set()
        assert next(lease)[0] == made.keys[0][1]


def test_the_previous_expert_is_released_when_the_next_is_asked_for(make_store):
    made = make_store(slots=1)
    with made.store.acquire(made.keys[0][:2], SOON) as lease:
        key, _ = next(lease)
        assert made.store._schedule.table.get(key).refs == 1
        next(lease)
        assert made.store._schedule.table.get(key) is None


def test_two_threads_with_leases_on_one_slot_both_progress(make_store):
    made = make_store(slots=1, experts=16)
    done = []
    threads = [
        threading.Thread(target=lambda part=part: done.append(len(made.drain(part))))
        for part in (made.keys[0][:10], made.keys[0][6:])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert done == [10, 10]
    made.store.check()


def test_two_threads_pin_the_same_expert(make_store):
    made = make_store(slots=1)
    key = made.keys[0][0]
    with made.store.acquire([key], SOON) as mine, made.store.acquire([key], SOON) as other:
        next(mine)
        next(other)
        assert made.store._schedule.table.get(key).refs == 2
    assert len(made.reads) == 1


def test_an_empty_lease_is_empty(make_store):
    made = make_store()
    assert made.drain([]) == []


def test_a_lease_left_early_gives_back_everything(make_store):
    made = make_store(slots=2)
    with made.store.acquire(made.keys[0], SOON) as lease:
        next(lease)
    lease.close()
    assert list(lease) == []
    assert not any(made.store._schedule.table.is_wanted(key) for key in made.all)
    assert sorted(made.drain(made.keys[0])) == made.keys[0]


def test_an_error_in_the_block_releases(make_store):
    made = make_store(slots=1)

    def fail():
        with made.store.acquire(made.keys[0][:3], SOON) as lease:
            next(lease)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert made.drain([made.keys[0][5]])


def test_hints_bring_experts_before_they_are_asked_for(make_store):
    made = make_store(slots=4, layers=2)
    made.drain(made.keys[0][:1])
    made.store.hint(made.keys[1][:2])
    made.until(lambda: made.store.stats().prefetch_bytes >= 2 * 4096)
    made.drain(made.keys[1][:2])
    stats = made.store.stats()
    assert (stats.prefetches, stats.useful, stats.hits) == (2, 2, 2)
    assert stats.layers[1].hits == 2
    assert len(made.reads) == stats.misses + stats.prefetches


def test_cancelled_hints_are_not_read(make_store, reads_held):
    gate = reads_held()
    made = make_store(layers=2, make_tier=gate)
    made.store.hint(made.keys[0])
    assert gate.begun.wait(SOON)
    made.store.cancel()
    gate.opened.set()
    made.drain(made.keys[1][:1])
    assert len(made.reads) == 2


def test_statistics_start_again_from_zero(make_store):
    made = make_store(slots=2)
    made.drain(made.keys[0])
    stats = made.store.stats()
    assert stats.evictions == 6
    end = 24 + 8 * 1200  # of the file, which the last reads pass
    asked = sum(min(part.start + part.length, end) - part.start for blob in made.reads for part in blob.segments)
    assert stats.bytes_read == stats.demand_bytes == asked
    assert stats.bandwidth > 0
    assert stats.stall_seconds > 0
    assert stats.hit_rate == 0
    assert "8 missed" in stats.describe()
    made.store.reset_stats()
    stats = made.store.stats()
    assert (stats.uses, stats.evictions, stats.bytes_read, stats.bandwidth, stats.hit_rate) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("policy", ["stale-first", "lru", "lfu"])
def test_the_store_decides_as_the_simulator_does(make_store, policy):
    trace = traces.sticky(40, 3, 8, 1, stay=0.5)  # one expert at a time: no timing to differ by
    made = make_store(slots=5, layers=3, policy=policy)
    for step in trace:
        for layer, (expert,) in enumerate(step):
            made.drain([made.keys[layer][expert]])
        made.store.step()
    simulated = simulate(trace, 5, policy)
    assert [made.place(blob) for blob in made.reads] == [(traces.layer_of(s), e) for s, e in simulated.reads]
    assert made.store.stats().evictions == simulated.stats.evictions


def test_registration_is_checked(make_store):
    made = make_store()
    with pytest.raises(StoreError, match="registered already"):
        made.store.register(made.all[0], Blob({}), layer=0)
    big = Blob({"w": TensorRange(Path("experts"), "U8", (9000,), 0, 9000)})
    with pytest.raises(StoreError, match="slot_bytes=12288"):
        made.store.register(Key("big", 0), big, layer=0)
    for act in (made.store.acquire, made.store.hint, made.store.cancel):
        with pytest.raises(StoreError, match="not registered"):
            act([Key("nowhere", 0)])


def test_wrong_options_are_refused():
    with pytest.raises(OptionError, match="lru"):
        Store(1, 4096, policy="lur")
    with pytest.raises(OptionError, match="reader"):
        Store(1, 4096, readers=0)
    with pytest.raises(BudgetError):
        Store(0, 4096)
