"""THOR's study: its claims on made-up metrics, its draws, and a run of a few steps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from coterie.models.attach import session_of
from coterie.models.find import find_sites
from coterie.studies import Bench, judge, plain_text
from coterie.studies.thor import (
    ARMS,
    CLAIMS,
    DENSE,
    R_DROP,
    RANDOM,
    SHAPE,
    STUDY,
    SWITCH,
    THOR,
    _model,
    expert_distance,
    run,
)
from coterie.studies.twins import mixture

GOOD = {
    THOR: {
        "bits per byte": 2.9, "by path": 2.91, "expert average": 2.89, "disagreement": 0.01,
        "disagreement of paths": 0.01, "spread": 1e-4, "spread of paths": 1e-3,
    },
    RANDOM: {
        "bits per byte": 3.0, "by path": 3.02, "expert average": 2.9, "disagreement": 0.03001,
        "disagreement of paths": 0.04, "spread": 2e-4, "spread of paths": 5e-3,
    },
    SWITCH: {"bits per byte": 2.95}, DENSE: {"bits per byte": 2.96}, R_DROP: {"bits per byte": 2.97},
}  # fmt: skip


def verdict(key, changes=None):
    """Of a claim, with some numbers changed in the last of three seeds: (arm, metric) -> value."""
    (claim,) = (one for one in CLAIMS if one.key == key)
    by_seed = {seed: {arm: dict(metrics) for arm, metrics in GOOD.items()} for seed in range(3)}
    for (arm, metric), value in (changes or {}).items():
        by_seed[2][arm][metric] = value
    return judge(claim, by_seed).verdict


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_a_claim_can_hold(claim):
    assert verdict(claim.key) == "holds"


@pytest.mark.parametrize(
    ("key", "changes", "found"),
    [
        ("a", {(RANDOM, "disagreement"): 0.0299}, "does not hold"),
        ("a", {(RANDOM, "disagreement"): 0.0, (THOR, "disagreement"): 0.0}, "not shown"),
        ("b", {(THOR, "spread"): 2e-4}, "does not hold"),
        ("c", {(THOR, "by path"): 3.02}, "does not hold"),
        ("d", {(THOR, "expert average"): 2.8799}, "does not hold"),
        ("d", {(THOR, "expert average"): 2.95}, "holds"),
        ("e", {(RANDOM, "disagreement of paths"): 0.029}, "does not hold"),
        ("f", {(THOR, "spread of paths"): 5e-3}, "does not hold"),
        ("g", {(SWITCH, "bits per byte"): 2.9}, "does not hold"),
        ("h", {(DENSE, "bits per byte"): 2.89}, "does not hold"),
        ("i", {(R_DROP, "bits per byte"): 2.89}, "does not hold"),
        ("i", {(R_DROP, "bits per byte"): math.nan}, "not shown"),
    ],
)
def test_a_claim_is_decided_by_its_numbers(key, changes, found):
    assert verdict(key, changes) == found


def test_two_passes_cost_what_one_of_twice_the_steps_costs():
    assert {arm.name: arm.steps for arm in ARMS} == {THOR: 300, RANDOM: 300, SWITCH: 600, DENSE: 600, R_DROP: 300}
    assert "".join(claim.key for claim in CLAIMS if claim.gated) == "abcd"
    assert STUDY.seeds == (0, 1, 2)


def test_while_it_learns_a_pass_has_one_expert_per_layer(tmp_path):
    model = _model(Bench(STUDY.arm(THOR), 0, tmp_path, tmp_path))
    session = session_of(model)
    session.keep, session.passes = True, 2
    drawn = set()
    for step in range(12):
        session.base = replace(session.base, step=step)
        model(input_ids=torch.randint(0, 256, (3, 8)).repeat(2, 1))
        passes = [routing.chosen.reshape(2, -1) for routing in session.routings.values()]
        assert len(passes) == 2  # layers
        assert all(len(one.unique()) == 1 for layer in passes for one in layer)
        drawn.add(tuple(int(one[0]) for layer in passes for one in layer))
    assert len(drawn) > 6  # of 256


def test_the_distance_of_experts():
    model = mixture(SHAPE, 0, "thor", {})
    experts = find_sites(model)[0].experts
    assert expert_distance(experts) == pytest.approx(math.sqrt(2), rel=0.05)
    with torch.no_grad():
        for stack in experts.parameters():
            stack.copy_(stack[:1].expand_as(stack))
    assert expert_distance(experts) == pytest.approx(0, abs=1e-6)


def test_every_arm_runs(prose, tmp_path):
    plain_text(prose, 300_000).save(tmp_path / "text")
    for arm in ARMS:
        place = tmp_path / arm.name
        place.mkdir()
        metrics = run(Bench(arm, 0, place, tmp_path / "text", scale=0.01))
        assert 1 < metrics["bits per byte"] < 9
        if arm.name in (THOR, RANDOM):
            assert metrics["disagreement"] > 0
            assert metrics["spread"] > 0
            assert 1 < metrics["ensemble"] < metrics["by path"] + 0.01
            assert 0.5 < metrics["expert distance"] < 2
