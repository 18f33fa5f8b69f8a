"""The studies of dynamic routing, AdaMoE and RMoE: their claims on numbers made by hand, and a few steps of each."""

from __future__ import annotations

import math

import pytest
import torch

from coterie.studies import adamoe, dynamic_routing, judge, open_study, plain_text, rmoe
from coterie.studies.learning import routers_in, tiny_moe
from coterie.studies.study import Bench
from coterie.training import Windows

# ---- dynamic routing: what the claims need, as it would be if all of them held

TOP_P = {
    "start experts": 4.0, "experts": 2.1, "hard experts": 2.4, "easy experts": 1.8, "hard bits per byte": 2.0,
    "experts by layer": [2.5, 2.0, 1.8],
}  # fmt: skip
DYNAMIC = {
    dynamic_routing.TOP_2: {"hard bits per byte": 2.01},
    dynamic_routing.FREE: TOP_P | {"experts": 2.3},
    dynamic_routing.PAPER: TOP_P,
    dynamic_routing.SHARP: TOP_P | {"experts": 1.2, "hard bits per byte": 3.0},
}
ADAMOE = {
    adamoe.A: {"bits per byte": 2.0, "start bits per byte": 2.1},
    adamoe.B: {
        "true experts": 1.5, "bits per byte": 2.01, "spread of true experts": 0.5, "null gradient": 0.0,
        "null gradient of the balance loss": 0.3, "correlation with the loss of a": 0.2,
    },
    adamoe.D: {"bits per byte": 2.1},
    adamoe.E: {"start difference from a": 0.0, "start bits per byte": 2.1},
}  # fmt: skip
RECURRENT = {"bits per byte": 2.0, "top1/top2": 2.0, "gradient at layer 1": 0.0, "adjusted MI": 0.3}
RMOE = {
    rmoe.SMOE: RECURRENT | {"bits per byte": 2.03, "top1/top2": 9.0, "adjusted MI": 0.1},
    rmoe.RMOE: RECURRENT | {"gradient at layer 1": 0.4},
    rmoe.NP: RECURRENT | {"bits per byte": 2.02},
    rmoe.DETACH: RECURRENT,
}
ALL_HOLD = {dynamic_routing: DYNAMIC, adamoe: ADAMOE, rmoe: RMOE}


def verdict(module, key, by_seed):
    claim = next(claim for claim in module.CLAIMS if claim.key == key)
    return judge(claim, dict(enumerate(by_seed))).verdict


def changed(module, arm, metric, value):
    arms = ALL_HOLD[module]
    return {**arms, arm: {**arms[arm], metric: value}}


@pytest.mark.parametrize(
    ("module", "key"), [(module, claim.key) for module in ALL_HOLD for claim in module.CLAIMS]
)  # fmt: skip
def test_a_claim_holds(module, key):
    assert verdict(module, key, [ALL_HOLD[module]] * 3) == "holds"


@pytest.mark.parametrize(
    ("module", "key"), [(module, claim.key) for module in ALL_HOLD for claim in module.CLAIMS]
)  # fmt: skip
def test_a_claim_is_not_shown_by_two_seeds(module, key):
    assert verdict(module, key, [ALL_HOLD[module]] * 2) == "not shown"
    assert verdict(module, key, [ALL_HOLD[module]] * 2 + [{}]) == "not shown"


@pytest.mark.parametrize(
    ("module", "key", "arm", "metric", "value"),
    [
        (dynamic_routing, "a", dynamic_routing.PAPER, "easy experts", 2.31),
        (dynamic_routing, "b", dynamic_routing.PAPER, "experts", 2.45),
        (dynamic_routing, "c", dynamic_routing.FREE, "experts", 2.0),
        (dynamic_routing, "c", dynamic_routing.SHARP, "experts", 2.2),
        (dynamic_routing, "d", dynamic_routing.PAPER, "hard bits per byte", 2.04),
        (dynamic_routing, "d", dynamic_routing.TOP_2, "hard bits per byte", 1.97),
        (dynamic_routing, "e", dynamic_routing.PAPER, "experts by layer", [1.8, 2.0, 2.5]),
        (adamoe, "1", adamoe.B, "true experts", 1.76),
        (adamoe, "2", adamoe.B, "bits per byte", 2.03),
        (adamoe, "3", adamoe.D, "bits per byte", 2.005),
        (adamoe, "4", adamoe.B, "spread of true experts", 0.29),
        (adamoe, "5", adamoe.E, "start difference from a", 2e-6),
        (adamoe, "6", adamoe.B, "null gradient", 1e-9),
        (adamoe, "6", adamoe.B, "null gradient of the balance loss", 0.0),
        (adamoe, "7", adamoe.B, "correlation with the loss of a", -0.1),
        (rmoe, "a", rmoe.RMOE, "gradient at layer 1", 0.0),
        (rmoe, "a", rmoe.NP, "gradient at layer 1", 1e-12),
        (rmoe, "a", rmoe.DETACH, "gradient at layer 1", 1e-12),
        (rmoe, "b", rmoe.SMOE, "top1/top2", 1.9),
        (rmoe, "e", rmoe.SMOE, "adjusted MI", 0.4),
    ],
)
def test_a_claim_fails_when_one_seed_fails(module, key, arm, metric, value):
    broken = changed(module, arm, metric, value)
    assert verdict(module, key, [ALL_HOLD[module], broken, ALL_HOLD[module]]) == "does not hold"
    unknown = changed(module, arm, metric, math.nan)
    if metric != "experts by layer":
        assert verdict(module, key, [ALL_HOLD[module], unknown, ALL_HOLD[module]]) == "not shown"


def test_the_beta_nearest_to_two_experts_is_compared():
    nearest = changed(dynamic_routing, dynamic_routing.FREE, "experts", 2.05)  # nearer than 2.1, and costly
    nearest[dynamic_routing.FREE] |= {"hard bits per byte": 2.5}
    assert verdict(dynamic_routing, "d", [nearest] * 3) == "does not hold"


def test_rmoe_may_cost_more_in_a_seed_but_not_on_average():
    worse, better = (changed(rmoe, rmoe.RMOE, "bits per byte", value) for value in (2.08, 2.0))
    assert verdict(rmoe, "c", [worse, better, better]) == "holds"
    assert verdict(rmoe, "c", [worse, worse, better]) == "does not hold"


def test_rmoe_that_is_not_better_is_not_shown_rather_than_refuted():
    worse = changed(rmoe, rmoe.RMOE, "bits per byte", 2.035)
    assert verdict(rmoe, "d", [RMOE, RMOE, worse]) == "holds"
    assert verdict(rmoe, "d", [RMOE, worse, worse]) == "not shown"


# ---- what the runs measure


@pytest.fixture(scope="module")
def text(prose, tmp_path_factory):
    place = tmp_path_factory.mktemp("corpus")
    plain_text(prose).save(place)
    return place


def run(name, text, tmp_path, arms, scale=0.008):
    """Metrics of some arms, in this process; those that others start from come first."""
    study, metrics, told = open_study(name), {}, []
    places = {arm.name: tmp_path / str(number) for number, arm in enumerate(study.arms)}
    for arm in (study.arm(arm) for arm in arms):
        places[arm.name].mkdir()
        earlier = {one: places[one] for one in arm.after}
        bench = Bench(arm, 0, places[arm.name], text, earlier, scale, told.append)
        metrics[arm.name] = study.run(bench)
        assert told[-1] == bench.steps
    return study, metrics


def columns_are_measured(study, metrics, arm):
    for column in study.columns:
        assert column.metric in metrics[arm], column.metric


def numbers_of(study, arms):
    return {claim.key: claim.numbers(arms) for claim in study.claims}


def test_dynamic_routing_runs(text, tmp_path):
    study, metrics = run("dynamic-routing", text, tmp_path, [arm.name for arm in open_study("dynamic-routing").arms])
    columns_are_measured(study, metrics, dynamic_routing.PAPER)
    numbers = numbers_of(study, metrics)
    assert 1 < numbers["b"]["start"] < 8
    assert metrics[dynamic_routing.TOP_2]["experts"] == 2
    assert all(math.isfinite(value) for of_claim in numbers.values() for value in of_claim.values())
    steps, experts = zip(*metrics[dynamic_routing.SHARP]["experts over training"], strict=True)
    assert (steps[0], steps[-1]) == (0, 4)
    assert all(1 <= value <= 8 for value in experts)


def test_adamoe_starts_where_the_first_stage_ended(text, tmp_path):
    study, metrics = run("adamoe", text, tmp_path, [arm.name for arm in open_study("adamoe").arms])
    columns_are_measured(study, metrics, adamoe.B)
    assert metrics[adamoe.A]["start bits per byte"] == metrics[adamoe.STAGE_1]["bits per byte"]
    for arm in (adamoe.B, adamoe.C, adamoe.E):
        assert metrics[arm]["null gradient"] == 0
        assert metrics[arm]["null gradient of the balance loss"] > 0
    assert metrics[adamoe.E]["start difference from a"] <= 1e-6
    assert metrics[adamoe.D]["true experts"] == 1
    assert all(math.isfinite(value) for each in numbers_of(study, metrics).values() for value in each.values())


def test_rmoe_sends_its_gradient_through_the_depth(text, tmp_path):
    study, metrics = run("rmoe", text, tmp_path, [arm.name for arm in open_study("rmoe").arms])
    columns_are_measured(study, metrics, rmoe.RMOE)
    gradients = {arm: metrics[arm]["gradient at layer 1"] for arm in metrics}
    assert gradients.pop(rmoe.RMOE) > 0
    assert set(gradients.values()) == {0.0}
    assert all(value["top1/top2"] >= 1 for value in metrics.values())


def test_arms_begin_alike():
    """Embeddings, attention, experts and, where there is one, the gate are the same in every arm of a seed."""
    linear, recurrent = tiny_moe(3, 2, "top_k", {"k": 2}), tiny_moe(3, 2, "rmoe", {"k": 2, "state": 8})
    there = dict(recurrent.named_parameters())
    for name, parameter in linear.named_parameters():
        if ".gate." not in name:
            assert torch.equal(parameter, there[name]), name
    nulls = tiny_moe(3, 2, "adamoe", {"k": 3, "num_nulls": 8, "copied": True})
    for one, other in zip(routers_in(linear), routers_in(nulls), strict=True):
        assert torch.equal(one.score.weight, other.score.inner.weight)
        assert torch.equal(one.score.weight, other.score.null_rows)
    other_seed = tiny_moe(4, 2, "top_k", {"k": 2})
    assert not torch.equal(linear.lm_head.weight, other_seed.lm_head.weight)


def test_easy_windows_repeat_a_short_pattern():
    windows = dynamic_routing.easy_windows(50, seed=1)
    assert windows.shape == (50, 64)
    assert torch.equal(windows, dynamic_routing.easy_windows(50, seed=1))
    assert not torch.equal(windows, dynamic_routing.easy_windows(50, seed=2))
    for row in windows:
        assert any(torch.equal(row[period:], row[:-period]) for period in range(2, 9))
    assert len({tuple(row[:8].tolist()) for row in dynamic_routing.easy_windows(2000, seed=1)}) <= 64


def test_easy_and_hard_take_turns():
    easy = dynamic_routing.easy_windows(3, seed=0)
    hard = Windows({"text": torch.arange(1000) % 256}, 64, 3, seed=0)
    mixed = dynamic_routing.Mixed(easy, hard, 6)
    assert len(mixed) == 6
    assert torch.equal(mixed[2]["input_ids"], easy[1])
    assert torch.equal(mixed[3]["input_ids"], hard[1]["input_ids"])
