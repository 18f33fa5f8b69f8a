from dataclasses import dataclass

import pytest

from coterie.errors import OptionError
from coterie.store import POLICIES, Belady, Key
from coterie.store.policies import LFU, NEVER, Moment, as_policy
from coterie.testing.stores import POLICY_CHECKS, POLICY_ROWS


@dataclass
class Candidate:
    key: Key
    layer: int
    used_step: int
    uses: int = 1


def candidate(layer, expert, used_step, uses=1):
    return Candidate(Key(f"layers.{layer}", expert), layer, used_step, uses)


@pytest.mark.parametrize("row", POLICY_ROWS.values(), ids=POLICY_ROWS)
@pytest.mark.parametrize("check", POLICY_CHECKS.values(), ids=POLICY_CHECKS)
def test_policy_battery(check, row):
    check(row)


def test_every_registered_policy_has_a_row():
    assert set(POLICIES) <= set(POLICY_ROWS)


def test_names_and_near_misses():
    assert type(as_policy("lru")) is POLICIES.get("lru")
    with pytest.raises(OptionError, match="stale-first"):
        as_policy("stale-frist")


def test_layers_ahead_wrap_around():
    now = Moment(3, 4, 6)
    assert [now.ahead(layer) for layer in range(6)] == [1, 2, 3, 4, 5, 0]


@pytest.mark.parametrize("name", list(POLICIES))
def test_no_candidate_no_victim(name):
    assert as_policy(name).victim([], Moment(0, 0, 1)) is None


def test_stale_first_takes_the_oldest_stale():
    held = [candidate(1, 0, 5), candidate(2, 0, 3), candidate(3, 0, 4)]
    assert as_policy("stale-first").victim(held, Moment(6, 0, 4)) is held[1]


def test_stale_first_takes_what_was_fetched_in_vain_before_all():
    held = [candidate(1, 0, NEVER), candidate(2, 0, 0)]
    assert as_policy("stale-first").victim(held, Moment(0, 0, 4)) is held[0]


def test_stale_first_takes_the_farthest_layer_then_the_oldest():
    held = [candidate(3, 0, 6), candidate(2, 0, 6), candidate(2, 1, 6), candidate(0, 0, 6)]
    # layer 2 has just run: all others come sooner
    assert as_policy("stale-first").victim(held, Moment(6, 2, 4)) is held[1]


def test_lru_and_lfu():
    held = [candidate(0, 0, 1, uses=9), candidate(1, 0, 2, uses=3), candidate(2, 0, 3, uses=3)]
    assert as_policy("lru").victim(held, Moment(9, 0, 4)) is held[0]
    assert as_policy("lfu").victim(held, Moment(9, 0, 4)) is held[1]


def test_lfu_counts_what_it_was_told_beforehand():
    held = [candidate(0, 0, 1, uses=9), candidate(1, 0, 2, uses=3), candidate(2, 0, 3, uses=4)]
    told = LFU({held[1].key: 2.5, Key("elsewhere", 0): 99.0})
    assert told.victim(held, Moment(9, 0, 4)) is held[2]
    assert LFU().victim(held, Moment(9, 0, 4)) is held[1]
    assert told.victim([], Moment(9, 0, 4)) is None


def test_belady_takes_the_farthest_next_use():
    a, b, c = (Key("layers.0", expert) for expert in range(3))
    policy = Belady([[[a]], [[b]], [[a, c]], [[b]]])
    held = [candidate(0, expert, 0) for expert in range(3)]
    assert policy.victim(held, Moment(0, 0, 1)) is held[0]  # a and c at step 2, b at 1
    assert policy.victim(held, Moment(1, 0, 1)) is held[1]
    assert policy.victim(held, Moment(2, 0, 1)) is held[0]  # never again
