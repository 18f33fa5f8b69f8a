"""The benchmark of convolutional networks: runs whole at tiny size, spreads the images, times no wrong answer."""

from __future__ import annotations

import json
from typing import Any

import pytest
import vision
from layers import timing
from visions import benchmark, report
from visions.arms import ARMS, GROUPED, Contest


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "ROUNDS", 2)


def cost(**changes: Any) -> dict[str, Any]:
    given = {
        "dense": 100,
        "narrow": 25,
        "pathway": 30,
        "router": 10,
        "experts": 2,
        "width": 1.0,
        "router_name": "resnet20",
    }
    return {"kind": "cost", "architecture": "resnet18", **given, **changes}


def case(batch: int = 128, mode: str = "inference", **seconds: float) -> dict[str, Any]:
    given = {"dense": 1.0, "narrow": 0.3, "masked": 0.6, "grouped": 0.5} | seconds
    return {
        "kind": "case", "architecture": "resnet18", "mode": mode, "batch": batch, "wrong": {}, "error": 0.0,
        "seconds": {arm: [value] for arm, value in given.items()}, "shares": [64, 64], "load": [0.1, 0.2],
    }  # fmt: skip


def test_a_tiny_run_ends_in_a_report_with_its_raw_numbers(tmp_path, capsys):
    vision.main([
        "--architectures", "resnet18", "vgg16", "--width", "0.06", "--batches", "1", "4", "--results", str(tmp_path)
    ])  # fmt: skip
    (raw,) = tmp_path.glob("vision_*.jsonl")
    _, *records = [json.loads(line) for line in raw.read_text().splitlines()]
    cases = [r for r in records if r["kind"] == "case"]
    assert len(cases) == 8
    for record in cases:
        assert not record["wrong"]
        assert set(record["seconds"]) == set(ARMS)
        assert sum(record["shares"]) == record["batch"]
    text = raw.with_suffix(".md").read_text()
    assert text in capsys.readouterr().out
    assert "- nothing of what was run is judged" in text
    vision.main(["--render", str(raw)])
    assert text in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["inference", "training"])
@pytest.mark.parametrize("experts", [2, 4])
def test_images_are_spread(mode, experts):
    contest = Contest("resnet18", experts, 0.06, 0)
    shares = contest.prepare(mode, contest.batch(32)[0])
    assert min(shares) >= 32 // experts - 3


def test_a_wrong_answer_has_no_time(monkeypatch):
    answer = benchmark._answer
    monkeypatch.setattr(
        benchmark, "_answer",
        lambda contest, arm, *rest: [(1.1 if arm == GROUPED else 1) * t for t in answer(contest, arm, *rest)],
    )  # fmt: skip
    record = benchmark._case(Contest("vgg16", 2, 0.06, 0), "inference", 2) | {"kind": "case"}
    assert record["wrong"][GROUPED] == pytest.approx(0.1, rel=1e-3)
    assert GROUPED not in record["seconds"]
    costs = {"vgg16": cost()}
    assert any("wrong (1.0e-01)" in cell for cell in report._cells(record, costs["vgg16"]))
    assert report.verdicts([record], costs) == ["- FAIL: vgg16, inference, batch 2: the answer was wrong"]


def test_verdicts():
    costs = {"resnet18": cost()}
    good = report.verdicts([case(), case(1), case(32, "training")], costs)
    assert [line.split(":")[0] for line in good] == ["- pass"] * 4
    assert "0.83, required at least 0.8" in good[0]
    slow = report.verdicts([case(grouped=0.6), case(1, grouped=1.1)], costs)
    assert [line.split(":")[0] for line in slow] == ["- FAIL", "- pass", "- FAIL"]
    assert report.verdicts([case()], {"resnet18": cost(width=0.5)}) == ["- nothing of what was run is judged"]


def test_no_saving_is_shown_where_there_is_none():
    cells = report._cells(case(), cost(router=90))
    assert "-" in cells
    assert report._cells(case(), cost())[-2] == "83%"


@pytest.mark.parametrize("wrong", [["--batches", "0"], ["--experts", "1"], ["--width", "0"]])
def test_numbers_that_are_not_allowed(wrong, tmp_path):
    with pytest.raises(SystemExit, match="must be 1 or more"):
        vision.main([*wrong, "--results", str(tmp_path)])
