"""Batteries for the store's parts: a policy or a tier supplies a row and inherits every check.

    @pytest.mark.parametrize("check", POLICY_CHECKS.values(), ids=POLICY_CHECKS)
    def test_mine(check): check(lambda trace: MyPolicy())

Checks raise AssertionError. They take no real time: policies run in the simulator.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from coterie.errors import StoreError
from coterie.ranges import TensorRange
from coterie.store import traces
from coterie.store.arena import Arena
from coterie.store.blob import Blob, Key
from coterie.store.policies import POLICIES, Belady, Policy
from coterie.store.predict import Noisy, Oracle
from coterie.store.simulate import Outcome, belady_loads, simulate
from coterie.store.table import SlotTable, State
from coterie.store.tiers import Tier
from coterie.store.traces import Trace

PolicyMaker = Callable[[Trace], Policy]
TierMaker = Callable[[Mapping[Path, bytes]], Tier]

POLICY_ROWS: Mapping[str, PolicyMaker] = {
    **{name: lambda trace, name=name: POLICIES.get(name)() for name in POLICIES},  # type: ignore[misc]
    "belady": lambda trace: Belady(traces.keys(trace)),
}


class Watch:
    """An ``on_event`` hook: after every change of a table, what must hold at every moment."""

    def __init__(self) -> None:
        self.events = 0
        self._protected: set[Key] = set()

    def __call__(self, table: SlotTable) -> None:
        """Conservation, and nothing gone that was pinned, loading or needed one event ago."""
        self.events += 1
        table.check()
        held = {entry.key: entry for entry in table.entries}
        gone = self._protected - held.keys()
        assert not gone, f"evicted while pinned or needed: {gone}"
        self._protected = {
            key for key, e in held.items() if e.state is State.READY and (e.refs or table.is_wanted(key))
        }


def policy_serves_every_use(make: PolicyMaker) -> None:
    """Every use is a hit, late or a miss, and reads are the misses and the prefetches."""
    for trace, slots, outcome in _runs(make):
        uses = sum(len(experts) for step in trace for experts in step)
        assert outcome.stats.uses == uses, slots
        assert len(outcome.reads) == outcome.stats.misses + outcome.stats.prefetches, slots


def policy_conserves_slots(make: PolicyMaker) -> None:
    """Free + held = capacity at every event; nothing pinned, loading or needed is evicted."""
    for trace in _traces():
        for slots in (1, 2, 5):
            watch = Watch()
            simulate(trace, slots, make(trace), _noisy(trace), on_event=watch)
            assert watch.events


def policy_is_bounded(make: PolicyMaker) -> None:
    """Never fewer loads than the offline optimum, never more than one per use and, when all fit, one per expert."""
    for trace, slots, outcome in _runs(make, predict=False):
        assert belady_loads(trace, slots) <= len(outcome.reads) <= outcome.stats.uses, slots
    for trace in _traces():
        distinct = {key for step in traces.keys(trace) for layer in step for key in layer}
        assert len(simulate(trace, len(distinct), make(trace)).reads) == len(distinct)


def policy_is_deterministic(make: PolicyMaker) -> None:
    """The same trace gives the same reads in the same order."""
    for trace in _traces():
        assert simulate(trace, 5, make(trace)).reads == simulate(trace, 5, make(trace)).reads


POLICY_CHECKS: Mapping[str, Callable[[PolicyMaker], None]] = {
    "serves every use": policy_serves_every_use,
    "conserves slots": policy_conserves_slots,
    "bounded": policy_is_bounded,
    "deterministic": policy_is_deterministic,
}


def write_blobs(folder: Path, count: int = 6, nbytes: int = 12_000) -> tuple[dict[Path, bytes], list[Blob]]:
    """Two files of random bytes in ``folder`` and blobs in them: unaligned starts, one blob in both, one at the end."""
    first, second = folder / "first.bin", folder / "second.bin"
    draws = random.Random(0)
    # 100 is no multiple of a page, and neither are the lengths of the files
    files = {path: draws.randbytes(100 + count * nbytes) for path in (first, second)}
    for path, data in files.items():
        path.write_bytes(data)
    half = nbytes // 2
    blobs = [
        Blob({"a": _range(first, 100 + n * nbytes, half), "b": _range(first, 100 + n * nbytes + half, half)})
        for n in range(count)
    ]
    blobs.append(Blob({"a": _range(first, 100, half), "b": _range(second, 100 + 3 * nbytes, half)}))
    return files, blobs


def tier_reads_what_is_there(make: TierMaker, folder: Path) -> None:
    """Tensors equal the files' bytes: unaligned, straddling two files, up to the last byte."""
    files, blobs = write_blobs(folder)
    tier = make(files)
    for blob in blobs:
        _read_and_compare(tier, blob, files)
    tier.close()


def tier_refuses_short_files(make: TierMaker, folder: Path) -> None:
    """A file that ends before its tensor does is an error that names it."""
    files, blobs = write_blobs(folder)
    path = folder / "first.bin"
    files[path] = files[path][:-1]
    path.write_bytes(files[path])
    tier = make(files)
    _expect_error(tier, blobs[5], path)
    _read_and_compare(tier, blobs[4], files)
    tier.close()


def tier_refuses_missing_files(make: TierMaker, folder: Path) -> None:
    """A file that is not there is an error that names it."""
    files, blobs = write_blobs(folder)
    path = folder / "second.bin"
    del files[path]
    path.unlink()
    tier = make(files)
    _expect_error(tier, blobs[-1], path)
    tier.close()


def tier_serves_many_readers(make: TierMaker, folder: Path) -> None:
    """Four threads read through one tier and get their own bytes."""
    files, blobs = write_blobs(folder)
    tier = make(files)
    wrong: list[BaseException] = []

    def work(seed: int) -> None:
        try:
            for blob in random.Random(seed).choices(blobs, k=20):
                _read_and_compare(tier, blob, files)
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tier.close()
    assert not wrong, wrong


TIER_CHECKS: Mapping[str, Callable[[TierMaker, Path], None]] = {
    "reads what is there": tier_reads_what_is_there,
    "refuses short files": tier_refuses_short_files,
    "refuses missing files": tier_refuses_missing_files,
    "serves many readers": tier_serves_many_readers,
}


def _traces() -> list[Trace]:
    return [
        traces.uniform(12, 3, 6, 2, seed=1),
        traces.sticky(12, 4, 5, 2, tokens=2, seed=2),
        traces.sticky(16, 1, 8, 3, stay=0.8, seed=3),
    ]


def _runs(make: PolicyMaker, predict: bool = True) -> list[tuple[Trace, int, Outcome]]:
    return [
        (trace, slots, simulate(trace, slots, make(trace), _noisy(trace) if noisy else None))
        for trace in _traces()
        for slots in (1, 2, 5, 9)
        for noisy in ((False, True) if predict else (False,))
    ]


def _noisy(trace: Trace) -> Noisy:
    sites = [traces.site(layer) for layer in range(len(trace[0]))]
    return Noisy(Oracle(traces.by_site(trace), sites, ahead=2), 5, recall=0.7, precision=0.6)


def _range(path: Path, start: int, nbytes: int) -> TensorRange:
    return TensorRange(path, "U8", (nbytes,), start, nbytes)


def _read_and_compare(tier: Tier, blob: Blob, files: Mapping[Path, bytes]) -> None:
    buffer = Arena(1, blob.slot_bytes).view(0)
    count = tier.read(blob, buffer)
    assert blob.nbytes <= count <= blob.slot_bytes, count
    tensors = blob.tensors(buffer)
    for name, part in blob.parts.items():
        expected = torch.frombuffer(bytearray(files[part.path][part.start : part.end]), dtype=torch.uint8)
        assert torch.equal(tensors[name], expected), (blob, name)


def _expect_error(tier: Tier, blob: Blob, path: Path) -> None:
    text = ""
    try:
        tier.read(blob, Arena(1, blob.slot_bytes).view(0))
    except StoreError as error:
        text = str(error)
    assert str(path) in text, f"reading past the end of {path} says {text!r}"
