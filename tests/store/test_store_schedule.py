import random

import pytest

from coterie.store import Key
from coterie.store.policies import Moment
from coterie.store.queue import ReadQueue
from coterie.store.schedule import Schedule
from coterie.testing.stores import Watch


def schedule_of(slots, *experts, policy="stale-first"):
    """A schedule whose layer l has ``experts[l]`` experts, and the keys per layer."""
    watch = Watch()
    schedule = Schedule(slots, policy, watch)
    keys = [[Key(f"s{layer}", e) for e in range(count)] for layer, count in enumerate(experts)]
    for layer, row in enumerate(keys):
        for key in row:
            schedule.register(key, layer)
    return schedule, keys


def read_all(schedule):
    """Do every read that may begin; the keys in order."""
    done = []
    while (read := schedule.next_read()) is not None:
        schedule.landed(read.key)
        done.append(read.key)
    return done


def use(schedule, keys):
    """Acquire, read and use ``keys`` one after the other; the keys read."""
    done, pending = [], list(keys)
    ready = schedule.arrive(keys)
    while pending:
        if not ready:
            ready = [key for key in read_all(schedule) if key in pending]
            done += ready
        key = ready.pop(0)
        schedule.pin(key)
        schedule.unpin(key)
        pending.remove(key)
    return done


def resident(schedule):
    return {entry.key for entry in schedule.table.entries}


def test_plec_example():
    """Demands {3, 2}, four slots: three of layer 1 and the most probable of layer 2; the last when a slot is done."""
    schedule, (e1, e2) = schedule_of(4, 5, 5)
    schedule.hint([e1[2], e1[3], e1[4], e2[2], e2[3]])
    assert read_all(schedule) == [e1[2], e1[3], e1[4], e2[2]]
    assert schedule.arrive([e1[2], e1[3], e1[4]]) == [e1[2], e1[3], e1[4]]
    assert schedule.next_read() is None
    schedule.pin(e1[2])
    assert schedule.next_read() is None
    schedule.unpin(e1[2])
    assert read_all(schedule) == [e2[3]]
    assert resident(schedule) == {e1[3], e1[4], e2[2], e2[3]}


def test_a_hint_never_drops_what_is_predicted_nearer_but_a_demand_may():
    schedule, (near, far) = schedule_of(2, 3, 3)
    schedule.hint([near[0], near[1], far[0]])
    assert read_all(schedule) == [near[0], near[1]]
    schedule.arrive([near[2]])  # the prediction was wrong; both have lapsed
    assert read_all(schedule) == [near[2], far[0]]


def test_a_nearer_hint_drops_a_farther_one():
    schedule, keys = schedule_of(2, 3, 3, 3)
    schedule.hint([keys[2][0], keys[2][1]])
    assert read_all(schedule) == [keys[2][0], keys[2][1]]
    schedule.hint([keys[0][0], keys[1][0]])
    assert read_all(schedule) == [keys[0][0], keys[1][0]]
    assert resident(schedule) == {keys[0][0], keys[1][0]}


def test_hints_go_nearest_layer_first_then_in_the_order_given():
    schedule, keys = schedule_of(9, 3, 3, 3)
    use(schedule, [keys[1][0]])
    schedule.hint([keys[0][2], keys[2][1], keys[2][0], keys[0][1]])
    assert read_all(schedule) == [keys[2][1], keys[2][0], keys[0][2], keys[0][1]]


def test_a_queued_prefetch_is_promoted_and_read_once():
    schedule, (keys, later) = schedule_of(4, 4, 4)
    schedule.hint([later[1], keys[3], later[0]])
    schedule.arrive([keys[0], keys[3]])
    reads = [schedule.next_read() for _ in range(4)]
    assert [(read.key, read.prefetch) for read in reads] == [
        (keys[0], False),
        (keys[3], False),
        (later[1], True),
        (later[0], True),
    ]
    assert schedule.counters.freeze(0).misses == 2


def test_a_running_prefetch_that_is_needed_is_late_and_useful():
    schedule, (keys,) = schedule_of(4, 4)
    schedule.hint([keys[0]])
    schedule.next_read()
    assert schedule.arrive([keys[0]]) == []
    assert schedule.next_read() is None
    schedule.landed(keys[0])
    schedule.pin(keys[0])
    stats = schedule.counters.freeze(0)
    assert (stats.late, stats.misses, stats.prefetches, stats.useful) == (1, 0, 1, 1)


def test_residents_that_are_needed_stay_until_used():
    schedule, (first, second) = schedule_of(2, 2, 2)
    use(schedule, first)
    schedule.arrive([first[1]])
    schedule.arrive([second[0], second[1]])
    assert read_all(schedule) == [second[0]]
    assert resident(schedule) == {first[1], second[0]}


def test_loads_do_not_exceed_one_per_use_in_waves():
    schedule, (keys,) = schedule_of(2, 8)
    assert use(schedule, keys) == keys
    again = use(schedule, keys)
    assert len(again) == len(set(again)) == 6  # two were there


def test_predictions_end_with_their_layer():
    schedule, (keys, later) = schedule_of(3, 3, 3)
    schedule.hint([keys[0], later[0], keys[1]])
    read_all(schedule)
    use(schedule, [keys[0]])
    predicted = {entry.key for entry in schedule.table.entries if entry.predicted}
    assert predicted == {later[0]}
    # what was fetched in vain goes before everything else
    assert schedule.table.entries[0].key == keys[1]


def test_queued_prefetches_end_with_their_layer():
    schedule, (keys, _) = schedule_of(3, 3, 3)
    schedule.hint([keys[0], keys[1]])
    use(schedule, [keys[2]])
    assert len(schedule.queue) == 0


def test_cancel_forgets_hints_but_not_demands():
    schedule, (keys, later) = schedule_of(4, 4, 4)
    schedule.hint(later)
    schedule.arrive([keys[0]])
    schedule.cancel([later[0]])
    assert later[0] not in schedule.queue
    assert later[1] in schedule.queue
    schedule.cancel()
    assert read_all(schedule) == [keys[0]]


def test_a_cancelled_read_lands_as_the_first_to_go():
    schedule, (keys, later) = schedule_of(2, 4, 4)
    use(schedule, [keys[0]])
    schedule.hint([later[0]])
    read = schedule.next_read()
    schedule.cancel()
    schedule.landed(read.key)
    use(schedule, [keys[1]])
    assert resident(schedule) == {keys[0], keys[1]}


def test_withdrawn_demands_are_not_read_unless_somebody_else_waits():
    schedule, (keys,) = schedule_of(4, 4)
    schedule.arrive(keys[:2])
    schedule.arrive(keys[1:2])
    schedule.withdraw(keys[0])
    schedule.withdraw(keys[1])
    assert read_all(schedule) == [keys[1]]
    stats = schedule.counters.freeze(0)
    assert (stats.misses, stats.late) == (2, 1)


def test_a_failed_read_frees_its_slot_and_can_be_asked_for_again():
    schedule, (keys,) = schedule_of(1, 2)
    schedule.arrive([keys[0]])
    schedule.failed(schedule.next_read().key)
    schedule.withdraw(keys[0])
    assert schedule.table.free == 1
    assert use(schedule, [keys[0]]) == [keys[0]]
    assert schedule.counters.freeze(0).failed == 1


def test_steps_follow_the_layers():
    schedule, keys = schedule_of(9, 1, 1, 1)
    moments = []
    for layer in (0, 1, 1, 2, 0, 2, 1):
        use(schedule, keys[layer])
        moments.append((schedule.now.step, schedule.now.layer))
    assert moments == [(0, 0), (0, 1), (0, 1), (0, 2), (1, 0), (1, 2), (2, 1)]
    schedule.step()
    use(schedule, keys[0])
    assert schedule.now == Moment(3, 0, 3)


def test_every_acquire_of_a_single_layer_is_a_step():
    schedule, (keys,) = schedule_of(2, 2)
    for _ in range(3):
        use(schedule, keys)
    assert schedule.now.step == 2


def test_slots_leave_and_return():
    schedule, (keys,) = schedule_of(3, 5)
    schedule.arrive(keys[:3])
    read_all(schedule)
    schedule.pin(keys[0])
    assert schedule.retire() is None  # one pinned, two still needed
    schedule.withdraw(keys[1])
    slot = schedule.retire()
    assert schedule.table.capacity == 2
    schedule.add(slot)
    assert schedule.table.free == 1


@pytest.mark.parametrize("seed", range(4))
def test_no_two_held_keys_share_a_slot(seed):
    draws = random.Random(seed)
    schedule, layers = schedule_of(4, 6, 6, 6)
    for _ in range(300):
        row = draws.choice(layers)
        schedule.hint(draws.sample(draws.choice(layers), 3))
        if draws.random() < 0.2:
            schedule.cancel()
        use(schedule, draws.sample(row, draws.randint(1, 6)))
    assert schedule.table.capacity == 4


def test_the_queue_holds_a_key_once():
    queue, (a, b, c) = ReadQueue(), [Key("s", e) for e in range(3)]
    queue.prefetch(a)
    queue.prefetch(b)
    queue.demand(b)
    queue.prefetch(b)
    queue.demand(c)
    assert len(queue) == 3
    order = []
    while (head := queue.head(lambda key: 0)) is not None:
        order.append(head)
        queue.remove(head[0])
    assert order == [(b, False), (c, False), (a, True)]
    assert a not in queue
