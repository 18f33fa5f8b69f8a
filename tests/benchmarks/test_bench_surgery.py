"""The surgery benchmark on its small scale: equal tensors, honest verdicts, and an arm that is wrong or fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import surgery
import torch
from safetensors.torch import save_file
from surgeries import factors
from surgeries.answers import differences
from surgeries.child import OURS, PLAIN, TASKS, main
from surgeries.models import SCALES, dense_model, mixture, weight_bytes
from surgeries.process import ArmFailed, spent
from surgeries.report import MERGEKIT, render, verdicts

SMALL = SCALES["small"]


def runs(seconds: float, peak: float) -> list[dict[str, Any]]:
    return [
        {"seconds": seconds * by, "peak": peak * 2**20, "anonymous": peak * 2**19, "cpu": 3.5} for by in (0.9, 1.0, 1.3)
    ]


def task(**changes: Any) -> dict[str, Any]:
    arms = {OURS: runs(2, 600), PLAIN: runs(3, 3000), MERGEKIT: runs(4, 1500)}
    base = {"task": "upcycle", "arms": arms, "wrong": {}, "left out": {}, "bytes read": 4e9, "bytes written": 5e9}
    return {"kind": "task", **base, **changes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("surgery")


def test_every_task_gives_the_same_tensors_in_both_arms(folder: Path) -> None:
    dense = [dense_model(folder, SMALL, n) for n in (0, 1)]
    sources = {"upcycle": dense, "average": dense}
    for name in TASKS:
        given = [str(source) for source in sources.get(name, [mixture(folder, SMALL)])]
        for arm, out in ((OURS, "ours"), (PLAIN, "plain")):
            main(name, arm, str(folder / f"{name}-{out}"), *given)
        skip = "gate.weight" if name == "upcycle" else ""
        assert differences(folder / f"{name}-ours", folder / f"{name}-plain", skip) == []
        assert weight_bytes(folder / f"{name}-ours") > 0
    others = differences(folder / "prune-ours", folder / "merge-ours")
    assert any(".experts.0." in name for name in others)
    assert not any("gate.weight" in name or "self_attn" in name for name in others)


def test_layouts_are_compared_expert_by_expert(tmp_path: Path) -> None:
    up, down = torch.randn(2, 6, 4), torch.randn(2, 4, 3)
    for name in ("stacked", "apart"):
        (tmp_path / name).mkdir()
    prefix = "model.layers.0."
    stacked = {f"{prefix}mlp.experts.gate_up_proj": up, f"{prefix}mlp.experts.down_proj": down}
    apart = {}
    for e in range(2):
        halves = up[e].chunk(2)
        for name, part in (("w1", halves[0]), ("w3", halves[1]), ("w2", down[e])):
            apart[f"{prefix}block_sparse_moe.experts.{e}.{name}.weight"] = part.clone()
    save_file(stacked, tmp_path / "stacked" / "model.safetensors")
    save_file(apart, tmp_path / "apart" / "model.safetensors")
    assert differences(tmp_path / "stacked", tmp_path / "apart") == []
    apart[f"{prefix}block_sparse_moe.experts.1.w3.weight"][0, 0] += 1
    save_file(apart, tmp_path / "apart" / "model.safetensors")
    assert differences(tmp_path / "stacked", tmp_path / "apart") == [f"{prefix}mlp.experts.1.up_proj.weight"]
    assert differences(tmp_path / "stacked", tmp_path / "apart", within=0.01)
    assert differences(tmp_path / "stacked", tmp_path / "apart", within=1.0) == []


def test_a_process_is_measured(tmp_path: Path) -> None:
    # it counts what it holds, so that it is there long enough to be looked at
    big = [sys.executable, "-c", "x = bytearray(b'1') * (64 << 20); sum(x)"]
    found = spent(big, tmp_path / "log", tmp_path, {})
    assert found.seconds > 0
    assert found.peak > 64 << 20
    assert found.cpu > 0
    mine = bytearray(b"1") * (256 << 20)  # what the parent holds is not the child's
    assert spent([sys.executable, "-c", "pass"], tmp_path / "log", tmp_path, {}).peak < len(mine) // 2
    with pytest.raises(ArmFailed, match="no luck"):
        spent([sys.executable, "-c", "raise SystemExit('no luck')"], tmp_path / "log", tmp_path, {})


def test_verdicts_say_pass_and_fail() -> None:
    assert verdicts([task()], judged=True) == [
        "- pass: upcycle: time over mergekit: 0.50, required at most 1.00",
        "- pass: upcycle: time over everything in memory: 0.67, required at most 1.00",
        "- pass: upcycle: peak memory over everything in memory: 0.20, required at most 0.33",
    ]
    slow = task(arms={OURS: runs(4, 1200), PLAIN: runs(3, 3000)}, **{"left out": {MERGEKIT: "it was not given"}})
    lines = verdicts([slow], judged=True)
    assert sum(line.startswith("- FAIL") for line in lines) == 2
    assert "- not compared with mergekit: it was not given" in lines
    wrong = verdicts([task(wrong={PLAIN: ["lm_head.weight"]})], judged=True)
    assert "- FAIL: upcycle: everything in memory made other tensors, so that nothing is compared" in wrong
    assert "nothing is judged" in verdicts([task()], judged=False)[0]


def test_the_report_has_a_table_for_each_task_and_no_ratio_on_a_wrong_answer() -> None:
    config = {
        "facts": {
            "hardware": {"processor": "test", "cores": 2, "kernel": "6", "file_system": "ext4"},
            "versions": {"python": "3.11"}, "repository": {"commit": "abc", "clean": True},
        },
        "scale": "full", "threads": 1, "raw": "x.jsonl", "mergekit": "0.1.5", "factors": [64, 128],
    }  # fmt: skip
    found = {"kind": "factors", "rank": 4, "rows": 1, "error": 0.5, "numbers": 0.1, "whole": 2e-3, "thin": 1e-3}
    text = render(config, [task(wrong={MERGEKIT: ["lm_head.weight"]}), found])
    assert "| coterie | 2.0 | 3.5 | 600 | 300 | 1.00 | 1.00 |" in text
    assert "| mergekit | wrong: lm_head.weight | - | - | - | - | - |" in text
    assert "| 4 | 0.10 | 0.500 | 1 | 2.000 | 1.000 | 0.50 |" in text
    assert "mergekit 0.1.5" in text


def test_factors_miss_less_at_a_larger_rank_and_nothing_at_all_of_it() -> None:
    found = factors.measure(16, 24, (2, 8, 16))
    errors = [record["error"] for record in found if record["rows"] == 256]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-3
    assert all(record["whole"] > 0 and record["thin"] > 0 for record in found)


def test_an_environment_without_mergekit_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no mergekit-moe beside"):
        surgery.main(["--scale", "small", "--folder", str(tmp_path), "--mergekit", str(tmp_path / "python")])
