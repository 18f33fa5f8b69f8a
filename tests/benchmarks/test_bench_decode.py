"""The decode benchmark: what it judges, and what it does not print."""

from __future__ import annotations

from typing import Any

import decode
import pytest
from decoding import report
from decoding.models import ARMS, OURS, PEERS
from offloading.scales import SCALES

GOOD = {arm: {"error": 0.001, "same": 24.0} for arm in ARMS}


def config(scale: str = "full") -> dict[str, Any]:
    facts = {
        "hardware": {"processor": "test", "cores": 2, "kernel": "6"}, "versions": {"python": "3.11"},
        "repository": {"commit": "abc", "clean": True},
    }  # fmt: skip
    return {
        "facts": facts, "scale": scale, "threads": 2, "kernel": "", "prompt": 8, "decode": 24, "rounds": 2,
        "raw": "x.jsonl", "bytes_per_token": 2**30, "bandwidth": 2**36,
    }  # fmt: skip


def rounds(**milliseconds: float) -> list[dict[str, Any]]:
    each = {"grouped_mm": 50.0, "eager": 55.0, OURS: 20.0, "coterie, plain": 50.0} | milliseconds
    return [
        {"kind": "round", "arm": arm, "round": n, "seconds": [ms / 1000 * (1 + n)] * 3}
        for n in range(2) for arm, ms in each.items()
    ]  # fmt: skip


def test_the_ratio_is_taken_within_rounds():
    text = report.render(config(), [{"kind": "answers", "answers": GOOD}, *rounds()])
    assert "pass: times faster than transformers' default: 2.50, required at least 2.0" in text
    assert "bound 15.6 ms" in text
    slow = report.render(config(), [{"kind": "answers", "answers": GOOD}, *rounds(coterie=30.0)])
    assert "FAIL: times faster than transformers' default: 1.67" in slow
    assert "only the full scale is judged" in report.render(
        config("small"), [{"kind": "answers", "answers": GOOD}, *rounds()]
    )


@pytest.mark.parametrize("error", [0.5, float("inf"), float("nan")])
def test_a_wrong_answer_has_no_time(error):
    answers = GOOD | {OURS: {"error": error, "same": 3.0}}
    text = report.render(config(), [{"kind": "answers", "answers": answers}, *rounds()])
    assert "FAIL: Coterie computed something else" in text
    assert "| Coterie | - | - |" in text
    assert "pass" not in text
    assert decode.render_wrong({"answers": answers}, OURS)
    assert not decode.render_wrong({"answers": answers}, PEERS[0])


def test_a_token_reads_all_but_the_embeddings_and_idle_experts():
    scale = SCALES["full"]
    attention, head = 6 * 4 * 2048**2, 50304 * 2048
    assert decode.bytes_per_token(scale) == pytest.approx(2 * (attention + head) + 48 * 12582912, rel=0.01)
