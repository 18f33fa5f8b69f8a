"""What a store of so many slots would do on given routes, on a virtual clock.

The same table, queue and policies as the threaded store, driven by events instead of threads: it
answers "how many slots, which policy, is prediction worth it" in a second, and the same way each time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from coterie.store.blob import Key
from coterie.store.governor import Governor
from coterie.store.policies import Belady, Moment, Policy
from coterie.store.predict import NoPredictor, Predictor
from coterie.store.schedule import Read, Schedule
from coterie.store.stats import StoreStats
from coterie.store.table import SlotTable
from coterie.store.traces import Trace, keys, layer_of, site


@dataclass(frozen=True)
class Costs:
    """Seconds, or any unit of time.

    Attributes:
        load: to read one expert.
        layer: of a layer's compute before its experts are known (attention, router).
        expert: of one expert's compute.
        overlap: residents compute while the missing are read; False waits for all of a layer's
            experts first, so that only prefetches run beside compute.
    """

    load: float = 1.0
    layer: float = 1.0
    expert: float = 0.0
    overlap: bool = True


@dataclass(frozen=True)
class Outcome:
    """Of one simulation.

    Attributes:
        stats: as the store counts; stalls in the units of `Costs`.
        stalls: of each step.
        seconds: from the first layer to the last, in the same units.
        reads: every key that was read, in order.
        prefetching: whether each step read ahead.
    """

    stats: StoreStats
    stalls: tuple[float, ...]
    seconds: float
    reads: tuple[Key, ...]
    prefetching: tuple[bool, ...]

    @property
    def loads_per_step(self) -> float:
        return len(self.reads) / len(self.stalls)

    @property
    def stall_per_step(self) -> float:
        return sum(self.stalls) / len(self.stalls)


def simulate(
    trace: Trace,
    slots: int,
    policy: str | Policy = "stale-first",
    predictor: Predictor | None = None,
    costs: Costs | None = None,
    *,
    governor: Governor | None = None,
    on_event: Callable[[SlotTable], None] | None = None,
) -> Outcome:
    """Run ``trace`` through a store with one reader.

    Args:
        trace: ``[step][layer]`` -> experts.
        slots: experts held at once.
        policy: by name or itself, `Belady` included.
        predictor: asked after each layer; sites are named by `traces.site`.
        costs: of loads and compute.
        governor: judges prefetching by the stall of each step; None always reads ahead.
        on_event: called with the table after each change, for invariants.
    """
    run = _Run(Schedule(slots, policy, on_event), costs if costs is not None else Costs())
    predictor = predictor if predictor is not None else NoPredictor()
    steps = keys(trace)
    for layer in range(max(map(len, steps), default=0)):
        run.know(layer, {key for step in steps if layer < len(step) for key in step[layer]})
    stalls, prefetching = [], []
    for step in steps:
        before, on = run.stall, governor is None or governor.on
        for layer, needed in enumerate(step):
            hints = predictor.after(site(layer), [key.expert for key in needed]) if needed else []
            run.run_layer(layer, needed, hints if on else [])
        run.schedule.step()
        stalls.append(run.stall - before)
        prefetching.append(on)
        if governor is not None:
            governor.observe(stalls[-1])
    stats = run.schedule.counters.freeze(run.schedule.table.evictions)
    return Outcome(stats, tuple(stalls), run.now, tuple(run.reads), tuple(prefetching))


class _Run:
    """The reader and the consumer of one simulation."""

    def __init__(self, schedule: Schedule, costs: Costs) -> None:
        self.schedule, self.costs = schedule, costs
        self.now = self.stall = 0.0
        self.reads: list[Key] = []
        self._reading: tuple[Read, float] | None = None  # and when it ends
        self._ready: deque[Key] = deque()
        self._pending: set[Key] = set()

    def know(self, layer: int, experts: set[Key]) -> None:
        for key in sorted(experts):
            self.schedule.register(key, layer)

    def run_layer(self, layer: int, needed: list[Key], hints: list[Key]) -> None:
        """Attention and router, then every needed expert, hints given as soon as the routes are known."""
        self._compute(self.costs.layer)
        self._pending = set(needed)
        self._ready = deque(self.schedule.arrive(needed))
        self._know_hints(hints)
        self.schedule.hint(hints)
        self._start()
        while self._pending:
            self._wait(layer)
            self._use(self._ready.popleft(), self.costs.expert if self.costs.overlap else 0.0)
        if not self.costs.overlap:
            self._compute(self.costs.expert * len(needed))

    def _know_hints(self, hints: list[Key]) -> None:
        """A wrong guess may name an expert that the trace never uses."""
        for key in hints:
            if key not in self.schedule:
                self.schedule.register(key, layer_of(key.site))

    def _use(self, key: Key, seconds: float) -> None:
        self.schedule.pin(key)
        self._pending.discard(key)
        self._compute(seconds)
        self.schedule.unpin(key)
        self._start()

    def _wait(self, layer: int) -> None:
        while not self._ready:
            assert self._reading is not None, "nothing is read and nothing is ready"
            waited = self._reading[1] - self.now
            self.stall += waited
            self.schedule.counters.layer(layer).stall_seconds += waited
            self._run_until(self._reading[1])

    def _compute(self, seconds: float) -> None:
        self._run_until(self.now + seconds)

    def _run_until(self, until: float) -> None:
        """Time passes; reads that end meanwhile land, and the next ones begin."""
        while self._reading is not None and self._reading[1] <= until:
            read, self.now = self._reading
            self._reading = None
            self.schedule.landed(read.key)
            if read.key in self._pending:
                self._ready.append(read.key)
            self._start()
        self.now = until

    def _start(self) -> None:
        if self._reading is None and (read := self.schedule.next_read()) is not None:
            self.reads.append(read.key)
            self._reading = (read, self.now + self.costs.load)


def belady_loads(trace: Trace, slots: int) -> int:
    """A lower bound: no policy, with or without prediction, loads fewer experts with ``slots`` slots.

    After each layer the experts that are used again first are kept (Belady 1966). A store may need a
    few loads more, since what was loaded last must stay in a slot for a moment, wanted or not.
    """
    steps = keys(trace)
    future = Belady(steps)
    resident: set[Key] = set()
    loads = 0
    for step, layers in enumerate(steps):
        for layer, needed in enumerate(layers):
            now = Moment(step, layer, len(layers))
            loads += len(set(needed) - resident)
            by_next_use = sorted(resident.union(needed), key=partial(future.next_use, now=now))
            resident = set(by_next_use[:slots])
    return loads
