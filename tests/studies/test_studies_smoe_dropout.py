"""SMoE-Dropout's study: its claims on made-up metrics, and a run of a few steps."""

from __future__ import annotations

import pytest

from coterie.studies import Bench, judge, plain_text
from coterie.studies.smoe_dropout import ARMS, CLAIMS, DENSE, FULL, GROWING, LEARNED, RANDOM, STUDY, run

GOOD = {
    DENSE: {"bits per byte": 2.9, "curve when cut": [4.0, 3.9, 3.8, 3.6, 3.4, 3.2, 3.0, 2.90005]},
    LEARNED: {"curve": [3.2, 3.1, 3.0, 2.95, 2.95, 2.949, 2.948, 2.946]},
    RANDOM: {"curve": [3.2, 3.1, 3.0, 2.98, 2.98, 2.98, 2.98, 2.98]},
    GROWING: {"curve": [3.3, 3.1, 3.0, 2.95, 2.93, 2.91, 2.905, 2.89]},
    FULL: {"curve": [3.4, 3.2, 3.1, 3.0, 2.96, 2.93, 2.92, 2.90]},
}


def verdict(key, changes=None, seeds=3):
    """Of a claim, with some numbers changed in the last seed: (arm, curve, k) -> value."""
    (claim,) = (one for one in CLAIMS if one.key == key)
    by_seed = {seed: {arm: {**metrics} for arm, metrics in GOOD.items()} for seed in range(seeds)}
    for (arm, metric, k), value in (changes or {}).items():
        points = list(by_seed[seeds - 1][arm][metric])
        points[k - 1] = value
        by_seed[seeds - 1][arm][metric] = points
    return judge(claim, by_seed).verdict


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_a_claim_can_hold(claim):
    assert verdict(claim.key) == "holds"
    assert verdict(claim.key, seeds=2) == "not shown"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("a", {(GROWING, "curve", 6): 2.951}),  # not below k = 4
        ("a", {(GROWING, "curve", 2): 2.95}),  # not above k = 4
        ("a", {(GROWING, "curve", 6): 2.945, (GROWING, "curve", 8): 2.9401}),  # falls, but by too little
        ("b", {(LEARNED, "curve", 8): 2.944}),
        ("c", {(LEARNED, "curve", 8): 2.889}),
        ("d", {(DENSE, "curve when cut", 8): 2.9002}),
        ("d", {(DENSE, "curve when cut", 8): 2.8998}),
        ("e", {(GROWING, "curve", 8): 2.9}),
        ("f", {(FULL, "curve", 8): 2.889}),
        ("g", {(RANDOM, "curve", 8): 2.97}),
    ],
)
def test_a_claim_can_fail(key, changes):
    assert verdict(key, changes) == "does not hold"


def test_the_overfitting_claim_allows_what_it_says():
    assert verdict("b", {(LEARNED, "curve", 8): 2.9451}) == "holds"


def test_only_what_the_paper_claims_is_gated():
    assert "".join(claim.key for claim in CLAIMS if claim.gated) == "abcd"
    assert [arm.name for arm in ARMS] == [DENSE, LEARNED, RANDOM, GROWING, FULL]
    assert {arm.steps for arm in ARMS} == {400}
    assert STUDY.seeds == (0, 1, 2)


def test_every_arm_runs(prose, tmp_path):
    plain_text(prose, 300_000).save(tmp_path / "text")
    for arm in ARMS:
        steps = []
        place = tmp_path / arm.name
        place.mkdir()
        metrics = run(Bench(arm, 0, place, tmp_path / "text", scale=0.01, tell=steps.append))
        assert steps == [1, 2, 3, 4]
        assert 1 < metrics["bits per byte"] < 9
        curve = metrics["curve when cut" if arm.name == DENSE else "curve"]
        assert len(curve) == 8
        assert len(set(curve)) == 8  # every k is another model
        if arm.name == DENSE:
            assert curve[-1] == pytest.approx(metrics["bits per byte"], abs=1e-4)
