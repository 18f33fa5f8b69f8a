"""The offload benchmark's arithmetic, verdict and report, on made-up numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from offloading.answers import complaints
from offloading.arms import ARMS, JUDGED, PEER, RESIDENT
from offloading.benchmark import render_file
from offloading.report import render
from offloading.summary import summarize
from offloading.verdict import Check, judge


def record(arm: str, ms: float, mb: float, *, routes: str = "uniform", repeat: int = 0, **facts: Any) -> dict[str, Any]:
    """A run of 4 tokens that took ``ms`` and read ``mb`` megabytes each, the store at 1 GB/s."""
    ours = ARMS[arm].kind == "coterie"

    def at(n: int) -> dict[str, Any]:
        store = {"bytes_read": n * mb * 1e6, "read_seconds": n * mb / 1e3, "misses": 2 * n, "stall_seconds": n / 1e3}
        return {"seconds": ms / 1e3, "device_bytes": n * mb * 1e6, "major_faults": n, "store": store if ours else {}}

    return {
        "arm": arm, "routes": routes, "repeat": repeat, "status": "ok", "error": 0.001,
        "digest": "same" if ours else arm, "foreign_share": 0.0, "slots": 10, "start": at(0),
        "group": {"peak": 1}, "anonymous_bytes": 1,
        "steps": [at(n) for n in range(1, 6)],
    } | facts  # fmt: skip


def good_records() -> list[dict[str, Any]]:
    return [
        record(arm, ms * (1 + repeat), mb, routes=routes, repeat=repeat)
        for routes in ("uniform", "sticky")
        for repeat in range(3)
        for arm, ms, mb in ((PEER, 600, 700), (JUDGED, 200, 160), (RESIDENT, 80, 0))
    ]


def config() -> dict[str, Any]:
    machine = {
        "processor": "test", "cores": 2, "memory_bytes": 2**34, "kernel": "6", "file_system": "ext4",
        "read_ahead_kib": 128,
    }  # fmt: skip
    return {
        "facts": {"hardware": machine, "versions": {"torch": "2"}, "repository": {"commit": "abc", "clean": True}},
        "date": "2026-01-01", "limit": 3 * 2**30, "memory": 2**31, "memory_reason": "2 GiB", "prompt": 8, "decode": 16,
        "repeats": 3, "seed": 0, "scale": "full", "unjudged": "", "kept_shares": {"uniform": 0.1, "sticky": 0.5},
        "raw": "raw.jsonl", "counter": {"cold": 8, "warm": 0, "size": 8},
    }  # fmt: skip


def test_ratios_are_taken_within_a_repeat() -> None:
    lines = {(line.routes, line.arm): line for line in summarize(good_records(), lambda routes, slots: 5e6)}
    ours = lines["uniform", JUDGED]
    assert (ours.ms, ours.runs) == (400, 3)
    assert ours.speedup == pytest.approx(3)
    assert ours.device_share == pytest.approx(160 / 700)
    assert ours.missed == pytest.approx(160e6)
    assert ours.misses == 2
    assert ours.bandwidth == pytest.approx(1e9)
    assert ours.belady == 5e6
    assert lines["uniform", PEER].bound is None


def test_the_bound_is_transfer_or_compute() -> None:
    by_transfer = [record(JUDGED, 200, 160), record(RESIDENT, 80, 0)]
    by_compute = [record(JUDGED, 200, 160), record(RESIDENT, 180, 0)]
    for records, bound in ((by_transfer, 160), (by_compute, 180)):
        line = next(line for line in summarize(records) if line.arm == JUDGED)
        assert line.bound == pytest.approx(bound)
        assert line.reached == pytest.approx(bound / 200)


def test_the_required_lines_are_judged() -> None:
    slow = [
        r if r["arm"] != JUDGED else record(JUDGED, 400, 500, routes=r["routes"], repeat=r["repeat"])
        for r in good_records()
    ]
    assert all(check.passed for check in judge(summarize([r for r in good_records() if r["repeat"] == 0])))
    checks = judge(summarize([r for r in slow if r["repeat"] == 0]))
    assert [check.passed for check in checks if "faster" in check.what] == [False] * 4
    assert [check.passed for check in checks if "device" in check.what] == [False] * 2
    assert all(check.passed is None for check in judge([]))
    assert Check("x", 2.2, 2.0).describe() == "pass: x: 2.20, required at least 2"
    assert Check("x", 2.2, 2.5, goal=True).describe() == "missed: x: 2.20, goal at least 2.5"
    assert Check("x", 0.7, 0.6, at_least=False).describe() == "FAIL: x: 0.70, required at most 0.6"


def test_a_good_report_shows_the_speed_up() -> None:
    text = render(config(), good_records())
    assert "pass: uniform: times faster than mmap: 3.00" in text
    assert "same bits in all 12 runs of Coterie" in text
    assert "Linux 6" in text


@pytest.mark.parametrize(
    "wrong",
    [{"arm": JUDGED, "digest": "other"}, {"arm": PEER, "error": 0.5}, {"arm": JUDGED, "error": float("nan")}],
    ids=["other bits", "too far", "not finite"],
)
def test_no_speed_up_on_wrong_answers(wrong: dict[str, Any]) -> None:
    records = good_records()
    next(r for r in records if r["arm"] == wrong["arm"]).update(wrong)
    assert complaints(records)
    text = render(config(), records)
    assert "Wrong answers: no speed-up is printed" in text
    assert "times faster" not in text
    assert "3.00 |" not in text
    assert "pass:" not in text


def test_a_failed_run_is_told_and_not_counted() -> None:
    failed = {"arm": PEER, "routes": "uniform", "repeat": 0, "status": "failed", "reason": "killed", "group": {}}
    text = render(config(), [failed, record(JUDGED, 200, 160), record(RESIDENT, 80, 0)])
    assert "Runs that failed" in text
    assert "NOT JUDGED: uniform: times faster than mmap: not measured" in text


def test_an_interrupted_run_can_be_rendered(tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    rows = [{"config": config()}, record(JUDGED, 200, 160)]
    raw.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ARMS[JUDGED].title in render_file(raw)
