"""The warm-start benchmark: what it counts, and that it says pass or fail plainly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import warm

from coterie.jobs import locate
from coterie.models.prompts import Prompts

FACTS: dict[str, Any] = {
    "hardware": {"processor": "test", "cores": 2, "kernel": "6"}, "versions": {"python": "3.11"},
    "repository": {"commit": "abc", "clean": True},
}  # fmt: skip
COLD, WARM = warm.Count(32.0, 100.0, 500.0), warm.Count(8.0, 50.0, 400.0)


def test_the_report_passes_and_fails() -> None:
    good = warm.render([(1, 64, "lfu", COLD, WARM, True)], FACTS)
    assert "| 1 | 64 of 128 | lfu | 32.0, 100.0, 500.0 | 8.0, 50.0, 400.0 | 75%, 50%, 20% |" in good
    assert "FAIL" not in good
    assert warm.render([(1, 64, "lfu", COLD, COLD, False)], FACTS).count("FAIL") == 2


def test_reads_are_counted_from_the_prompt_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm, "REQUESTS", 2)
    monkeypatch.setattr(warm, "ANSWER", 8)
    ids = Prompts.of(locate("pocket"), None).encode("The captain looked at the sea. " * 4, raw=True)[0]
    found, logits = warm.count(ids, 1, "lru", 128, None)
    assert found.prompt == 32  # 4 experts of each of 8 layers, none of which is there
    assert 32 < found.early == found.whole <= 128
    assert len(logits) == 2 * 9
    assert bool(torch.isfinite(logits).all())
