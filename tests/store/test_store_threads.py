"""Many threads, faults and sizes at once: nothing leaks, nothing tears, nothing hangs."""

import random
import threading

import pytest

from coterie.errors import StoreError
from coterie.store import EmulatedTier
from coterie.store.table import State

THREADS, TURNS = 8, 125


class Flaky:
    """A tier one read in fifteen of which fails."""

    def __init__(self):
        self.draws = random.Random(0)

    def __call__(self, tier):
        return EmulatedTier(tier, before=self.strike)

    def strike(self, blob):
        if self.draws.random() < 1 / 15:
            raise StoreError("unlucky")


def turn(made, draws, torn):
    """One random deed."""
    deed, layer = draws.random(), draws.choice(made.keys)
    if deed < 0.6:
        with made.store.acquire(draws.sample(layer, draws.randint(1, 8)), 60.0) as lease:
            for place, (key, weights) in enumerate(lease):
                if not made.is_whole(key, weights):
                    torn.append(key)
                if draws.random() < 0.05 and place:
                    break
    elif deed < 0.8:
        made.store.hint(draws.sample(made.all, 6))
    elif deed < 0.9:
        made.store.cancel(draws.choice([None, draws.sample(made.all, 6)]))
    elif deed < 0.97:
        made.store.resize(draws.randint(1, 12))
    else:
        made.store.reset_stats()


@pytest.mark.parametrize(("policy", "readers"), [("stale-first", 1), ("lru", 3)])
def test_random_interleavings(make_store, policy, readers):
    made = make_store(slots=5, layers=3, experts=12, make_tier=Flaky(), policy=policy, readers=readers)
    torn, wrong, unlucky = [], [], []

    def work(seed):
        draws = random.Random(seed)
        for _ in range(TURNS):
            try:
                turn(made, draws, torn)
            except StoreError as error:
                (unlucky if str(error) == "unlucky" else wrong).append(error)
            except BaseException as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    assert not wrong
    assert not torn
    assert unlucky
    made.store.check()
    made.store.close()
    made.store.check()
    assert made.watch.events > THREADS * TURNS
    for entry in made.store._schedule.table.entries:
        assert entry.state is State.READY
        assert entry.refs == 0
    assert not any(made.store._schedule.table.is_wanted(key) for key in made.all)
