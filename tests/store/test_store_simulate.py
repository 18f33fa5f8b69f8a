import itertools
import random

import pytest

from coterie.errors import OptionError
from coterie.store import Belady, Costs, Governor, Noisy, Oracle, belady_loads, simulate, traces
from coterie.store.blob import Key
from coterie.store.predict import NoPredictor, Predictor
from coterie.testing.stores import Watch

# name -> layers, experts, top k, tokens; the traces of the policies' calibration
SHAPES = {"wide": (6, 32, 1, 8), "deep": (32, 8, 2, 1)}


def trace_of(shape, steps=60):
    layers, experts, top_k, tokens = SHAPES[shape]
    return traces.sticky(steps, layers, experts, top_k, tokens, seed=0)


def slots_of(shape, share):
    layers, experts, _, _ = SHAPES[shape]
    return int(share * layers * experts)


def sites_of(trace):
    return [traces.site(layer) for layer in range(len(trace[0]))]


def oracle(trace, ahead=None):
    return Oracle(traces.by_site(trace), sites_of(trace), ahead)


class Adversary(Predictor):
    """Foresees exactly the experts that will not be used."""

    def __init__(self, trace, experts):
        self._oracle, self._sites, self._experts = oracle(trace, ahead=1), sites_of(trace), experts

    def after(self, site, needed, x=None):
        right = set(self._oracle.after(site, needed))
        later = self._sites[(self._sites.index(site) + 1) % len(self._sites)]
        return [key for expert in range(self._experts) if (key := Key(later, expert)) not in right]


def test_traces_have_the_shape_asked_for():
    trace = traces.sticky(9, 3, 8, 2, tokens=4)
    assert len(trace) == 9
    for step in trace:
        assert len(step) == 3
        for experts in step:
            assert 2 <= len(experts) <= 8
            assert list(experts) == sorted(set(experts))
            assert 0 <= experts[0] <= experts[-1] < 8
    assert trace == traces.sticky(9, 3, 8, 2, tokens=4)
    assert trace != traces.sticky(9, 3, 8, 2, tokens=4, seed=1)
    with pytest.raises(OptionError, match="top_k"):
        traces.uniform(1, 1, 4, 5)


def test_sticky_tokens_stay_and_uniform_ones_do_not():
    def repeats(trace):
        pairs = [(set(a), set(b)) for one, two in itertools.pairwise(trace) for a, b in zip(one, two, strict=True)]
        return sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs)

    assert repeats(traces.uniform(200, 4, 64, 4)) == pytest.approx(4 / 64, abs=0.02)
    for together in (True, False):
        kept = repeats(traces.sticky(200, 4, 64, 4, stay=0.9, zipf=0.0, together=together))
        assert kept == pytest.approx(0.9 + 0.1 * 4 / 64, abs=0.02)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.125, 0.25, 0.5])
def test_stale_first_is_lru_or_much_better(shape, share):
    """The hit ratio is never more than a point below LRU's, and at least 0.3 where LRU's is below 0.05."""
    trace, slots = trace_of(shape), slots_of(shape, share)
    lru, stale = (simulate(trace, slots, policy).stats.hit_rate for policy in ("lru", "stale-first"))
    assert stale >= lru - 0.01
    assert lru >= 0.05 or stale >= 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_lru_falls_off_its_cliff(shape):
    assert simulate(trace_of(shape), slots_of(shape, 0.125), "lru").stats.hit_rate < 0.05


@pytest.mark.parametrize("shape", SHAPES)
def test_a_perfect_prediction_saves_stall(shape):
    """At a quarter of the experts and loads as long as layers, at most 0.7 of LRU's stall."""
    trace, slots = trace_of(shape), slots_of(shape, 0.25)
    lru = simulate(trace, slots, "lru", costs=Costs(load=1.0, layer=1.0))
    plec = simulate(trace, slots, "stale-first", oracle(trace), Costs(load=1.0, layer=1.0))
    assert plec.stall_per_step <= 0.7 * lru.stall_per_step
    assert plec.loads_per_step <= 1.05 * lru.loads_per_step


@pytest.mark.parametrize(
    ("trace", "at_most"),
    [
        (traces.uniform(60, 6, 64, 8), 0.9),
        (traces.sticky(60, 6, 64, 8), 0.9),
        (traces.sticky(60, 6, 64, 8, together=False), 0.65),
    ],
    ids=["uniform", "sticky in bursts", "sticky"],
)
def test_overlap_saves_stall(trace, at_most):
    """42 % of 6 x 64 experts, top-8: reads beside the residents' compute against reads before it."""
    # a read takes 8.8 ms; 80 ms of compute in 6 layers, most of it the 48 experts'
    costs = {"load": 8.8, "layer": 1.5, "expert": 71 / 48}
    synchronous = simulate(trace, 160, costs=Costs(**costs, overlap=False))
    overlapped = simulate(trace, 160, costs=Costs(**costs))
    assert overlapped.stats.misses <= 1.02 * synchronous.stats.misses
    assert overlapped.stall_per_step <= at_most * synchronous.stall_per_step


def test_synchronous_stall_is_loads_times_their_length():
    trace = trace_of("wide")
    outcome = simulate(trace, 24, costs=Costs(load=3.0, layer=1.0, expert=0.1, overlap=False))
    assert outcome.stall_per_step == pytest.approx(3 * outcome.loads_per_step)
    uses = outcome.stats.uses
    assert outcome.seconds == pytest.approx(sum(outcome.stalls) + 60 * 6 * 1.0 + 0.1 * uses)
    assert sum(layer.stall_seconds for layer in outcome.stats.layers.values()) == pytest.approx(sum(outcome.stalls))


def test_a_perfect_prediction_with_room_and_time_never_stalls():
    trace = traces.uniform(30, 4, 16, 3)
    outcome = simulate(trace, 4 * 3, "stale-first", oracle(trace, ahead=1), Costs(load=1.0, layer=3.0))
    assert outcome.stalls[0] == pytest.approx(3.0)  # the first layer, of which nobody told
    assert set(outcome.stalls[1:]) == {0.0}
    assert outcome.stats.misses == 3


def test_an_empty_prediction_changes_nothing():
    trace = trace_of("wide")
    assert simulate(trace, 24, predictor=NoPredictor()) == simulate(trace, 24)


def test_each_use_causes_at_most_one_transfer():
    trace = trace_of("wide", steps=30)
    for slots in (1, 3, 24, 60):
        watch = Watch()
        predictor = Noisy(oracle(trace, ahead=2), 32, recall=0.8, precision=0.5)
        outcome = simulate(trace, slots, predictor=predictor, on_event=watch)
        assert len(outcome.reads) == outcome.stats.misses + outcome.stats.prefetches
        assert outcome.stats.misses <= outcome.stats.uses
        demand_only = simulate(trace, slots)
        assert len(demand_only.reads) == demand_only.stats.misses


def test_the_governor_stops_an_adversary():
    trace = traces.sticky(320, 6, 16, 2, tokens=2)
    costs = Costs(load=1.0, layer=1.0)
    plain = simulate(trace, 24, costs=costs)
    harmed = simulate(trace, 24, "stale-first", Adversary(trace, 16), costs)
    governed = simulate(trace, 24, "stale-first", Adversary(trace, 16), costs, governor=Governor())
    assert harmed.seconds > 1.1 * plain.seconds  # or there is nothing to stop
    assert governed.seconds <= 1.1 * plain.seconds
    assert not any(governed.prefetching[64 : 32 + 8 * 32])


def test_the_governor_keeps_what_pays():
    trace = traces.sticky(200, 6, 16, 2, tokens=2)
    governed = simulate(trace, 24, "stale-first", oracle(trace, ahead=1), governor=Governor())
    assert all(governed.prefetching[64:])
    assert governed.seconds < simulate(trace, 24).seconds


def fewest_loads(trace, slots):
    """Of a store, by trying every order within a layer and every victim."""
    best = {frozenset(): 0}
    for layer in (layer for step in traces.keys(trace) for layer in step):
        after = {}
        for order in itertools.permutations(layer):
            states = best
            for key in order:
                states = cheapest(reached(states, key, slots))
            after = cheapest([*after.items(), *states.items()])
        best = after
    return min(best.values())


def reached(states, key, slots):
    for resident, loads in states.items():
        if key in resident:
            yield resident, loads
        elif len(resident) < slots:
            yield resident | {key}, loads + 1
        else:
            yield from ((resident - {victim} | {key}, loads + 1) for victim in resident)


def fewest_loads_keeping_anything(trace, slots):
    """The same where nothing that was loaded must be kept, by trying every set to keep."""
    best = {frozenset(): 0}
    for layer in (layer for step in traces.keys(trace) for layer in step):
        best = cheapest(
            (frozenset(kept), loads + len(set(layer) - resident))
            for resident, loads in best.items()
            for there in [resident | set(layer)]
            for kept in itertools.combinations(there, min(slots, len(there)))
        )
    return min(best.values())


def cheapest(outcomes):
    found = {}
    for state, cost in outcomes:
        found[state] = min(cost, found.get(state, cost))
    return found


@pytest.mark.parametrize("seed", range(25))
def test_belady_is_the_optimum(seed):
    draws = random.Random(seed)
    trace = traces.uniform(4, draws.randint(1, 2), draws.randint(3, 4), draws.randint(1, 3), seed=seed)
    for slots in (1, 2, 3):
        bound, possible = belady_loads(trace, slots), fewest_loads(trace, slots)
        assert bound == fewest_loads_keeping_anything(trace, slots)
        assert bound <= possible <= len(simulate(trace, slots, Belady(traces.keys(trace))).reads)


def test_drawn_routes_use_every_expert_at_its_rate():
    rates = [0.9, 0.5, 0.3, 0.2, 0.1, 0.0, 1.0]
    steps = traces.drawn(4000, rates, seed=1)
    assert all(len(experts) == 3 for experts in steps)
    for expert, rate in enumerate(rates):
        assert sum(expert in experts for experts in steps) / 4000 == pytest.approx(rate, abs=0.03)
    assert traces.drawn(3, rates, 5, seed=2) == traces.drawn(3, rates, 5, seed=2)
    uneven = [len(experts) for experts in traces.drawn(2000, [0.25, 0.25], seed=3)]
    assert set(uneven) == {0, 1}
    assert sum(uneven) / 2000 == pytest.approx(0.5, abs=0.05)
    with pytest.raises(OptionError, match="probabilities"):
        traces.drawn(1, [1.5])
