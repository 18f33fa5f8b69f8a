"""From raw runs to one line per arm. Nothing here measures anything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from offloading.arms import ARMS, PEER, RESIDENT
from offloading.counters import FOREIGN_LIMIT

Record = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One arm on one kind of routes. Times in ms; bytes, misses, stall and faults per decode token.

    Attributes:
        ms, p95: of one decode token, over the tokens of all repeats.
        first: ms until the first token's logits.
        device: bytes the process read from the device.
        missed, misses, stall, bandwidth: the store's own bytes, experts, ms waited, bytes per second; None of a peer.
        speedup, device_share: mmap's time by this arm's, this arm's device bytes by mmap's: medians over repeats
            of the ratio within a repeat; None without a partner.
        bound, reached: max(missed / bandwidth, resident time) in ms, and its share in the measured time; means over
            the tokens of a run on both sides, so that a token with many misses counts on both.
        belady: bytes the best policy of all would have missed on these routes with these slots.
        peak: bytes of the memory group at its fullest, page cache included; None without a group.
        anonymous: bytes of the process at the end that no file backs: libraries, weights and slots.
        disturbed: runs beside others who used more of the machine than the rule allows, even after a second try.
    """

    arm: str
    routes: str
    runs: int
    ms: float
    p95: float
    first: float
    device: float
    faults: float
    missed: float | None
    misses: float | None
    stall: float | None
    bandwidth: float | None
    slots: int | None
    speedup: float | None
    device_share: float | None
    bound: float | None
    reached: float | None
    belady: float | None
    peak: float | None
    anonymous: float
    disturbed: int


# (routes, slots) -> bytes per decode token
Belady = Callable[[str, int], float]


def summarize(records: Sequence[Record], belady: Belady | None = None) -> list[Line]:
    """A line for every arm that finished at least once, in the order of the arms' table."""
    done = [r for r in records if r["status"] == "ok"]
    groups = [(routes, arm) for routes in _in_order(r["routes"] for r in done) for arm in ARMS]
    return [_line(runs, done, belady) for group in groups if (runs := _of(done, *group))]


def decode_ms(record: Record) -> list[float]:
    return [1000 * step["seconds"] for step in record["steps"][1:]]


def per_token(record: Record, name: str) -> float:
    """The mean growth of a counter per decode token; ``store.misses`` is one of the store's."""
    steps = record["steps"]
    return (_counter(steps[-1], name) - _counter(steps[0], name)) / (len(steps) - 1)


def _counter(step: Record, name: str) -> float:
    value: Any = step
    for part in name.split("."):
        value = value[part]
    return float(value)


def _line(runs: list[Record], done: list[Record], belady: Belady | None) -> Line:
    arm, routes = runs[0]["arm"], runs[0]["routes"]
    tokens = sorted(ms for run in runs for ms in decode_ms(run))
    store = bool(runs[0]["steps"][0]["store"])
    bounds = [(bound, run) for run in runs if (bound := bound_ms(run, done)) is not None]
    slots = runs[0]["slots"] if store else None
    return Line(
        arm=arm,
        routes=routes,
        runs=len(runs),
        ms=median(tokens),
        p95=tokens[min(len(tokens) - 1, int(0.95 * len(tokens)))],
        first=median(1000 * run["steps"][0]["seconds"] for run in runs),
        device=median(per_token(run, "device_bytes") for run in runs),
        faults=median(per_token(run, "major_faults") for run in runs),
        missed=median(per_token(run, "store.bytes_read") for run in runs) if store else None,
        misses=median(per_token(run, "store.misses") for run in runs) if store else None,
        stall=median(1000 * per_token(run, "store.stall_seconds") for run in runs) if store else None,
        bandwidth=_middle(bandwidth(run) for run in runs),
        slots=slots,
        speedup=_middle(_ratio(run, _partner(run, done, PEER), _speed) for run in runs),
        device_share=_middle(_ratio(run, _partner(run, done, PEER), _device) for run in runs),
        bound=_middle(bound for bound, _ in bounds),
        reached=_middle(bound / mean(decode_ms(run)) for bound, run in bounds),
        belady=belady(routes, slots) if belady and slots and ARMS[arm].limited else None,
        peak=_middle(run["group"].get("peak") for run in runs),
        anonymous=median(run["anonymous_bytes"] for run in runs),
        disturbed=sum(run["foreign_share"] > FOREIGN_LIMIT for run in runs),
    )


def bandwidth(run: Record) -> float | None:
    """Bytes per second inside the store while this run decoded; None where it read nothing.

    Of the decode alone: the disk may have had another speed minutes or seconds earlier, and a bound from then
    would be none.
    """
    first, last = run["steps"][0]["store"], run["steps"][-1]["store"]
    if not last or last["read_seconds"] == first["read_seconds"]:
        return None
    return (last["bytes_read"] - first["bytes_read"]) / (last["read_seconds"] - first["read_seconds"])


def bound_ms(run: Record, done: Sequence[Record]) -> float | None:
    """max(missed bytes / this run's bandwidth, time of the resident arm): no overlap can beat it. None if unknown."""
    speed = bandwidth(run)
    partner = _partner(run, done, RESIDENT) or next(iter(_of(done, run["routes"], RESIDENT)), None)
    if speed is None or partner is None or not ARMS[run["arm"]].limited:
        return None
    return max(1000 * per_token(run, "store.bytes_read") / speed, mean(decode_ms(partner)))


def _ratio(run: Record, partner: Record | None, of: Callable[[Record, Record], float | None]) -> float | None:
    return None if partner is None else of(run, partner)


def _speed(run: Record, partner: Record) -> float:
    return median(decode_ms(partner)) / median(decode_ms(run))


def _device(run: Record, partner: Record) -> float | None:
    theirs = per_token(partner, "device_bytes")
    return per_token(run, "device_bytes") / theirs if theirs else None


def _partner(run: Record, done: Sequence[Record], arm: str) -> Record | None:
    """The run of ``arm`` in the same repeat on the same routes."""
    return next((r for r in _of(done, run["routes"], arm) if r["repeat"] == run["repeat"]), None)


def _of(done: Sequence[Record], routes: str, arm: str) -> list[Record]:
    return [r for r in done if r["routes"] == routes and r["arm"] == arm]


def _middle(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
