"""The benchmark of training: runs whole at tiny size, judges what it must, and prints no time of a wrong answer."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import pytest
import torch
import training
from layers import limits, timing
from layers.arms import Contest
from layers.shapes import SHAPES
from trainings import benchmark, report
from trainings.routed import SETTINGS, Routed


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "_FLUSH_BYTES", 4096)
    monkeypatch.setattr(limits, "_BYTES", 2**20)
    monkeypatch.setattr(limits, "_SIDE", 64)


def case(shape: str = "A", tokens: int = 2048, **seconds: float) -> dict[str, Any]:
    given = {"dense": 1.0, "eager": 4.0, "grouped_mm": 2.0, "coterie": 1.2} | seconds
    given = {**{s.name: 1.3 if s.share == 1 else 0.7 for s in SETTINGS}, **given}
    return {
        "kind": "case", "shape": shape, "dtype": "torch.float32", "tokens": tokens, "once": [], "wrong": {},
        "seconds": {arm: [value] for arm, value in given.items()}, "mean": {}, "bound": 0.6,
    }  # fmt: skip


def test_a_tiny_run_ends_in_a_report_with_its_raw_numbers(tmp_path, capsys):
    training.main(["--shapes", "tiny", "--tokens", "64", "--results", str(tmp_path)])
    (raw,) = tmp_path.glob("training_*.jsonl")
    _, *records = [json.loads(line) for line in raw.read_text().splitlines()]
    cases = [r for r in records if r["kind"] == "case"]
    assert len(cases) == 2
    for record in cases:
        assert not record["wrong"]
        assert {s.name for s in SETTINGS} < set(record["seconds"])
    text = raw.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert "| coterie, top_p, half |" in text
    training.main(["--render", str(raw)])
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: s.name)
def test_a_setting_uses_as_many_experts_as_it_says(setting):
    contest = Contest(SHAPES["tiny"], torch.float32, 0)
    routed = Routed(contest, setting, 0)
    assert routed.mean == pytest.approx(setting.share * SHAPES["tiny"].top_k, rel=0.25)


def test_a_wrong_answer_has_no_time(monkeypatch):
    contest = Contest(SHAPES["tiny"], torch.float32, 0)
    routed = Routed(contest, SETTINGS[0], 0)
    x = contest.tokens(16, 0)
    assert benchmark._routed_error(contest, routed, x) < 1e-5
    monkeypatch.setattr(benchmark, "loop_of", partial(_doubled, benchmark.loop_of))
    assert benchmark._routed_error(contest, routed, x) > 0.4
    bad = case()
    del bad["seconds"]["top_p"]
    bad["wrong"] = {"top_p": 0.5}
    assert "wrong (5.0e-01)" in report._table(bad, [])
    assert any("top_p over the dense layer: the answer was wrong" in line for line in report.verdicts([bad]))


def _doubled(loop_of, layer):
    plain = loop_of(layer)
    plain.register_forward_hook(lambda module, args, output: 2 * output)
    return plain


def test_verdicts():
    lines = report.verdicts([case()])
    judged = [line.split(":")[0] for line in lines]
    assert judged == ["- pass"] * (1 + 10 + 2)
    assert [line for line in lines if "half" in line and "over all: 0.58" in line]
    slow = report.verdicts([case(coterie=2.1)])
    assert slow[0].startswith("- FAIL")
    assert "1.05, required at most 1.0" in slow[0]
    assert report.verdicts([]) == ["- nothing of what was run is judged"]
