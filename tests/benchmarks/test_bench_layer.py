"""The layer benchmark: runs whole at tiny size, judges what it must, and prints no speed of a wrong answer."""

from __future__ import annotations

import json
from typing import Any

import layer
import pytest
import torch
from layers import answers, limits, report, timing
from layers.arms import ARMS, DENSE, OURS, Contest
from layers.limits import Limits
from layers.shapes import SHAPES


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "_FLUSH_BYTES", 4096)
    monkeypatch.setattr(limits, "_BYTES", 2**20)
    monkeypatch.setattr(limits, "_SIDE", 64)


def case(shape: str = "A", tokens: int = 2048, backward: bool = True, **seconds: float) -> dict[str, Any]:
    given = {"dense": 1.0, "eager": 4.0, "grouped_mm": 2.0, "coterie": 1.2} | seconds
    return {
        "kind": "case", "shape": shape, "dtype": "torch.float32", "tokens": tokens, "backward": backward,
        "seconds": {arm: [value] for arm, value in given.items()}, "once": [], "wrong": {}, "bound": 0.6,
    }  # fmt: skip


def test_a_tiny_run_ends_in_a_report_with_its_raw_numbers(tmp_path, capsys):
    layer.main(["--shapes", "tiny", "--tokens", "1", "16", "--results", str(tmp_path)])
    (raw,) = tmp_path.glob("layer_*.jsonl")
    _, *records = [json.loads(line) for line in raw.read_text().splitlines()]
    assert [r["kind"] for r in records].count("case") == 2 * 2 * 2
    assert [r["kind"] for r in records].count("half") == 2
    assert all(not r["wrong"] and set(r["seconds"]) == set(ARMS) for r in records if r["kind"] == "case")
    text = raw.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert "forward and backward: 8 experts of 64 x 32" in text
    assert "bound/ours" in text
    layer.main(["--render", str(raw)])
    assert text in capsys.readouterr().out


def test_a_wrong_answer_has_no_time():
    contest = Contest(SHAPES["tiny"], torch.float32, 0)
    x = contest.tokens(4, 0)
    found = {arm: answers.results(contest, arm, x, True) for arm in ARMS}
    assert all(error < 1e-5 for error in answers.errors(found, "eager").values())
    found[OURS][2] = found[OURS][2] + 1  # one gradient
    assert answers.errors(found, "eager")[OURS] > 1
    found[OURS][2] = torch.full_like(found[OURS][2], float("nan"))
    assert answers.errors(found, "eager")[OURS] == float("inf")
    bad = case()
    del bad["seconds"][OURS]
    bad["wrong"] = {OURS: 0.5}
    assert "wrong (5.0e-01)" in report._table("A", True, [bad])
    assert any("the answer was wrong" in line for line in report.verdicts([bad], []))


def test_verdicts():
    lines = report.verdicts([case(), case("S", 512, coterie=2.3), case("B", 1, False), case("B", 1, False, eager=1.3)],
                            [{"kind": "half", "shape": "A", "dtype": "torch.float32", "tokens": 2048,
                              "seconds": {"all": [1.0], "half": [0.5]}}])  # fmt: skip
    assert [line.split(":")[0] for line in lines] == ["- pass", "- FAIL", "- pass", "- FAIL", "- pass"]
    assert report.speedup(case()) == pytest.approx(2 / 1.2)
    assert report.verdicts([case("tiny")], []) == ["- nothing of what was run is judged"]


def test_eager_is_left_out_where_its_gradients_fill_the_machine(monkeypatch):
    contest = Contest(SHAPES["tiny"], torch.float32, 0)
    assert contest.arms(True) == list(ARMS)
    monkeypatch.setattr("layers.arms._EAGER_BYTES", 8 * 8 * SHAPES["tiny"].expert_parameters * 4 - 1)
    assert contest.arms(True) == [DENSE, "grouped_mm", OURS]
    assert contest.arms(False) == list(ARMS)
    partial = case()
    del partial["seconds"]["eager"]
    assert "| 1000 | - | 2000 | 1200 |" in report._table("A", True, [partial])


def test_the_bound_counts_what_must_be_moved():
    shape, slow = SHAPES["B"], Limits(bandwidth=1.0, flops=1e30)
    expert = 3 * 2048 * 1024 * 2
    assert slow.seconds(shape, torch.bfloat16, 1, False) == pytest.approx(8 * expert)
    assert slow.seconds(shape, torch.bfloat16, 10**6, True) == pytest.approx(3 * 64 * expert)
    assert Limits(1e30, 1.0).seconds(shape, torch.bfloat16, 3, True) == pytest.approx(3 * 8 * 3 * expert)


def test_the_dense_layer_has_the_active_parameters():
    contest = Contest(SHAPES["tiny"], torch.float32, 0)
    dense: Any = contest.layers[DENSE][0]
    assert sum(p.numel() for p in dense.parameters()) == 2 * SHAPES["tiny"].expert_parameters
