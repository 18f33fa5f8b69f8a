"""Probes of disk and memory, on clocks and links that are made up."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from coterie.errors import StoreError
from coterie.ranges import TensorRange
from coterie.store import Blob, DiskTier, EmulatedTier, MemoryTier, VirtualClock
from coterie.store.clock import Clock
from coterie.store.measure import Speed, Speeds, call_seconds, disk_speed, measure_speeds, memory_speed

SIZE, COUNT = 8192, 40


def blobs_in(path, size=SIZE, count=COUNT):
    return [Blob({"w": TensorRange(path, "U8", (size,), number * size, size)}) for number in range(count)]


def link(bandwidth, clock, latency=0.0):
    tier = MemoryTier({Path("file"): bytes(SIZE * COUNT)})
    return EmulatedTier(tier, bandwidth=bandwidth, latency=latency, clock=clock)


class Ticking(Clock):
    """A second passes at every look."""

    def __init__(self) -> None:
        self._ticks = itertools.count()

    def now(self) -> float:
        return float(next(self._ticks))

    def sleep_until(self, moment: float) -> None:
        """Time passes by itself."""


@pytest.mark.parametrize("bandwidth", [1e3, 1e6, 1e9])
def test_the_disk_is_as_fast_as_its_link(bandwidth):
    clock = VirtualClock()
    speed = disk_speed(blobs_in(Path("file")), link(bandwidth, clock), seconds=1e9, clock=clock)
    assert speed.bandwidth == pytest.approx(bandwidth)
    assert f"{COUNT} " in speed.how
    assert speed.seconds(2 * bandwidth) == pytest.approx(2)


def test_latency_counts_as_the_store_would_feel_it():
    clock = VirtualClock()
    speed = disk_speed(blobs_in(Path("file")), link(math.inf, clock, latency=0.5), seconds=1e9, clock=clock)
    assert speed.bandwidth == pytest.approx(SIZE / 0.5)


def test_a_probe_ends_when_its_time_is_over():
    clock = VirtualClock()
    speed = disk_speed(blobs_in(Path("file")), link(SIZE / 1.0, clock), seconds=3, clock=clock)
    assert speed.how.startswith("3 ")


def test_files_are_read_and_the_way_is_told(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE * COUNT))
    assert disk_speed(blobs_in(path)).bandwidth > 0
    tier = DiskTier(direct=False)
    assert "buffered" in disk_speed(blobs_in(path), tier).how
    tier.close()


@pytest.mark.parametrize("content", [None, b"", bytes(SIZE)])
def test_a_file_that_is_missing_or_short_is_a_sentence(content, tmp_path):
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StoreError, match="file"):
        disk_speed(blobs_in(path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_measured_by_its_best_pass(dtype, monkeypatch):
    monkeypatch.setattr("coterie.store.measure._probe_bytes", lambda: 1)
    speed = memory_speed(dtype, seconds=0.0, clock=Ticking())
    assert speed.bandwidth == 2048 * 1024 * dtype.itemsize  # one matrix, one tick
    assert str(dtype).removeprefix("torch.") in speed.how


def test_all_three(tmp_path, monkeypatch):
    monkeypatch.setattr("coterie.store.measure._probe_bytes", lambda: 1)
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE * COUNT))
    speeds = measure_speeds(blobs_in(path), torch.float32)
    assert isinstance(speeds, Speeds)
    assert speeds.call > 0
    assert speeds.as_record()["disk"]["bandwidth"] == speeds.disk.bandwidth
    assert call_seconds(torch.float32) > 0


def test_for_people():
    assert Speed(2**30, "two reads").describe() == "1.00 GiB/s (two reads)"


def test_the_kernel_is_timed_where_it_would_compute(monkeypatch):
    monkeypatch.setattr("coterie.store.measure._probe_bytes", lambda: 1)
    monkeypatch.setattr("coterie.store.measure.has_few", lambda row, weights: True)
    rows = []
    monkeypatch.setattr("coterie.store.measure.few_rows", lambda row, matrix: rows.append(row.shape))
    assert memory_speed(torch.bfloat16, compiled=True, seconds=0.0, clock=Ticking()).how.startswith("compiled products")
    assert rows
    rows.clear()
    monkeypatch.setattr("coterie.store.measure.has_few", lambda row, weights: False)
    assert memory_speed(torch.float16, compiled=True, seconds=0.0, clock=Ticking()).how.startswith("products")
    assert not rows
