import pytest

from coterie.errors import OptionError
from coterie.store import Governor, Prefetcher
from coterie.store.predict import PreviousStep


def run(governor, steps, cost):
    """Which steps read ahead, when a step costs ``cost(on)``."""
    states = []
    for _ in range(steps):
        states.append(governor.on)
        governor.observe(cost(governor.on))
    return states


def test_a_gain_keeps_it_on():
    states = run(Governor(), 320, lambda on: 1.0 if on else 2.0)
    assert not states[0]
    assert all(states[32:])


@pytest.mark.parametrize("cost_when_on", [0.96, 1.0, 3.0])
def test_without_five_per_cent_it_stays_off_but_for_trials(cost_when_on):
    states = run(Governor(rest=8), 320, lambda on: cost_when_on if on else 1.0)
    assert sum(states[:32]) == 16
    assert not any(states[32 : 32 + 8 * 32])
    assert any(states[32 + 8 * 32 :])


def test_no_stall_at_all_is_no_gain():
    assert not any(run(Governor(), 64, lambda on: 0.0)[32:])


def test_it_is_off_within_two_windows_of_turning_bad():
    governor = Governor()
    run(governor, 96, lambda on: 0.5 if on else 1.0)
    assert governor.on
    states = run(governor, 96, lambda on: 2.0 if on else 1.0)
    assert not any(states[64:])


def test_one_outlier_decides_nothing():
    governor, costs = Governor(), iter([1.0] * 10 + [900.0] + [1.0] * 1000)
    assert not any(run(governor, 64, lambda on: next(costs))[32:])


@pytest.mark.parametrize("window", [0, 4, 30])
def test_windows_are_checked(window):
    with pytest.raises(OptionError, match="multiple of 4"):
        Governor(window=window)


def test_prefetcher_hints_only_while_the_governor_allows(make_store):
    made = make_store(slots=8, layers=2, experts=4)
    governor = Governor(window=8)
    prefetcher = Prefetcher(made.store, PreviousStep(["s0", "s1"]), "s1", governor)
    hinted = []
    made.store.hint = lambda keys: hinted.append(list(keys))
    for _ in range(8):
        on, before = governor.on, len(hinted)
        for layer in range(2):
            with made.store.acquire(made.keys[layer][:2]) as lease:
                prefetcher.after(f"s{layer}", [0, 1])
                assert len(list(lease)) == 2
        # the last layer ends the step after its hint
        assert len(hinted) - before == (2 if on else 0)
    assert hinted
    assert made.store.stats().stall_seconds > 0


def test_prefetcher_without_a_governor_always_hints(make_store):
    made = make_store(slots=8, layers=2, experts=4)
    prefetcher = Prefetcher(made.store, PreviousStep(["s0", "s1"]), "s1")
    for _ in range(3):
        for layer in range(2):
            prefetcher.after(f"s{layer}", [layer])
    made.until(lambda: made.store.stats().prefetches == 2)
    with made.store.acquire([made.keys[1][1]], 30.0) as lease:
        assert len(list(lease)) == 1
    assert made.store.stats().misses == 0
