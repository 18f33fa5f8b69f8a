"""MC-SMoE's study: its claims on made-up metrics, planting, pruning and merging of its models, a run of a few steps."""

from __future__ import annotations

import copy

import pytest
import torch

from coterie.models.find import find_sites
from coterie.ops.align import align
from coterie.studies import Bench, judge
from coterie.studies import mc_smoe_models as models
from coterie.studies.mc_smoe import STUDY
from coterie.studies.mc_smoe_accounting import accounting, expert_factored, sizes
from coterie.studies.mc_smoe_arms import (
    ARMS,
    C_GROUPS,
    C_PRUNED,
    C_RANDOM,
    C_REAP,
    C_UNALIGNED,
    COVERAGE,
    FREQUENCY,
    FULL,
    KEEP,
    MERGED_SMALL,
    PRUNED,
    RANDOM,
    SMALL,
    SMALL_ALIKE,
    SMALL_KEEP,
    SMALL_RANK,
    UNALIGNED,
)
from coterie.studies.mc_smoe_claims import CLAIMS
from coterie.studies.mc_smoe_run import run
from coterie.studies.mc_smoe_text import DOMAINS, six_domains
from coterie.surgery.grouping import Grouping

EXPERT = 3 * models.WIDTH * models.INNER
MERGED = {"experts": [5, 4, 3], "parameters": 12 * EXPERT}
GOOD = {
    FULL: {"one-shot": 1.9, "nearest is family": 1.0, **accounting()},
    COVERAGE: {"one-shot": 1.91, "after": 1.9, "by rank": [2.4, 2.2, 2.0, 1.92, 1.91], **MERGED,
               "stable rank before": [24, 22, 21], "stable rank after": [23, 22, 20]},
    FREQUENCY: {"one-shot": 2.0, "after": 1.95, **MERGED}, UNALIGNED: {"one-shot": 2.1, "after": 2.05},
    RANDOM: {"one-shot": 2.2}, PRUNED: {"one-shot": 2.15, "after": 2.0, **MERGED},
    MERGED_SMALL: {"after": 2.0, "parameters": 300, "by formula": 300, "units kept": 422, "units": 4224},
    SMALL: {"after": 2.05, "parameters": 1200, "by formula": 1200, "units kept": 1690, "units": 16896},
    SMALL_ALIKE: {"after": 2.1, "parameters": 301, "by formula": 301, "units kept": 422, "units": 16896},
    C_GROUPS: {"one-shot": 2.6, "after": 2.19}, C_RANDOM: {"one-shot": 2.61, "after": 2.2},
    C_UNALIGNED: {"one-shot": 2.7}, C_PRUNED: {"after": 2.21}, C_REAP: {"after": 2.2},
}  # fmt: skip


def verdict(key, changes=None, seeds=3):
    """Of a claim, with some numbers changed in the last seed: (arm, metric) -> value."""
    (claim,) = (one for one in CLAIMS if one.key == key)
    by_seed = {seed: copy.deepcopy(GOOD) for seed in range(seeds)}
    for (arm, metric), value in (changes or {}).items():
        by_seed[seeds - 1][arm][metric] = value
    return judge(claim, by_seed).verdict


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.key)
def test_a_claim_can_hold(claim):
    assert verdict(claim.key) == "holds"
    assert verdict(claim.key, seeds=2) == "not shown"


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("a", {(FULL, "one-shot"): 1.92}),
        ("b", {(COVERAGE, "one-shot"): 2.0}),
        ("c", {(UNALIGNED, "one-shot"): 1.99}),
        ("c", {(RANDOM, "one-shot"): 2.0}),
        ("c", {(PRUNED, "one-shot"): 1.5}),
        ("d", {(FREQUENCY, "parameters"): 12 * EXPERT + 1}),
        ("d", {(SMALL, "by formula"): 1201}),
        ("d", {(SMALL, "units kept"): 1692}),
        ("e", {(COVERAGE, "by rank"): [2.4, 2.2, 2.2021, 1.92, 1.91]}),
        ("e", {(COVERAGE, "by rank"): [2.4, 2.2, 2.0, 1.92, 1.9102]}),
        ("f", {(FULL, "operations saved"): 0.17}),
        ("f", {(FULL, "largest difference"): 0.003}),
        ("f", {(FULL, "full, millions"): 1940.0}),
        ("g", {(FULL, "nearest is family"): 0.94}),
        ("h", {(UNALIGNED, "after"): 1.94}),
        ("i", {(PRUNED, "after"): 1.94}),
        ("j", {(C_RANDOM, "one-shot"): 2.591}),
        ("k", {(C_RANDOM, "after"): 2.19}),
        ("l", {(C_UNALIGNED, "one-shot"): 2.5}),
        ("m", {(C_REAP, "after"): 2.18}),
        ("n", {(SMALL, "after"): 1.99}),
        ("o", {(SMALL_ALIKE, "after"): 1.99}),
        ("o", {(SMALL_ALIKE, "parameters"): 310}),
        ("p", {(COVERAGE, "stable rank after"): [25, 23, 21]}),
    ],
)
def test_a_claim_can_fail(key, changes):
    assert verdict(key, changes) == "does not hold"


def test_what_the_study_stands_or_falls_with():
    assert "".join(claim.key for claim in CLAIMS if claim.gated) == "abcdef"
    assert STUDY.seeds == (1, 2, 3)  # 0 was looked at beforehand
    steps = {arm.name: arm.steps for arm in ARMS}
    assert steps[MERGED_SMALL] == steps[SMALL] == steps[SMALL_ALIKE]
    assert len({steps[name] for name in (COVERAGE, FREQUENCY, UNALIGNED, RANDOM, PRUNED)}) == 1
    assert len({steps[name] for name in (C_GROUPS, C_RANDOM, C_UNALIGNED, C_PRUNED, C_REAP)}) == 1
    assert SMALL_RANK * 16 == 32 * 4
    assert pytest.approx(KEEP * 4) == SMALL_KEEP * 16


def test_the_papers_sizes():
    found = {name: round(size / 1e6) for name, size in sizes().items()}
    assert found == {"full": 1978, "merged": 733, "merged, compressed": 381, "compressed": 570}
    assert expert_factored() == pytest.approx(0.718e6, rel=1e-3)


def test_six_kinds_of_text():
    corpus = six_domains(None, 20_000)
    assert {name: len(data) for name, data in corpus.parts.items()} == {"train": 108_000, "valid": 6000, "test": 6000}
    assert len(DOMAINS) == 6
    assert corpus.digest == six_domains(None, 20_000).digest
    kinds = [corpus.parts["valid"][at : at + 1000] for at in range(0, 6000, 1000)]
    assert len({bytes(sorted(set(kind))) for kind in kinds}) == 6


def off(found, expected):
    """Relative distance; noise sends a byte now and then to another expert."""
    return float((found - expected).norm() / expected.norm())


def test_clones_compute_what_their_family_does():
    base = models.made(0, models.FAMILIES).eval()
    model = models.cloned(base, 0).eval()
    ids = torch.randint(0, 256, (2, 32))
    with torch.no_grad():
        assert off(model(input_ids=ids).logits, base(input_ids=ids).logits) < 0.1
    ours = models.ffn_of(find_sites(model)[1])
    stacks = models.canonical({name: weight.detach() for name, weight in ours.named_parameters()}, ours.shape)
    first, second = ({name: weight[e] for name, weight in stacks.items()} for e in (0, 1))
    far = (first["up_proj"] - second["up_proj"]).norm()
    near = (first["up_proj"] - align(first, second)["up_proj"]).norm()
    assert near < 0.05 * far


def test_merging_clones_and_leaving_nothing_out_change_nothing():
    base = models.made(0, models.FAMILIES).eval()
    ids = torch.randint(0, 256, (4, 32))
    model = models.cloned(base, 0).eval()
    labels = [e // models.CLONES * models.CLONES for e in range(models.EXPERTS)]
    group = Grouping.of(labels, sorted(set(labels)))
    names = [site.name for site in models.changed_sites(model)]
    with torch.no_grad():
        before = model(input_ids=ids).logits
        models.merge(model, dict.fromkeys(names, group), dict.fromkeys(names, torch.ones(models.EXPERTS)))
        assert off(model(input_ids=ids).logits, before) < 0.1
        assert [site.num_stored for site in find_sites(model)] == [16, 4, 4, 4]
        whole = models.cloned(base, 0).eval()
        models.prune(whole, dict.fromkeys(names, tuple(range(models.EXPERTS))))
        assert torch.equal(whole(input_ids=ids).logits, before)


def test_what_is_seen_of_a_layer():
    model = models.made(0, models.FAMILIES).eval()
    seen = models.observe(model, torch.randint(0, 256, (6, 16)), batch=4)
    assert list(seen) == [site.name for site in find_sites(model)]
    for one in seen.values():
        assert float(one.usage.sum()) == 6 * 16
        assert one.similarity.diagonal().tolist() == [1.0] * models.FAMILIES
        assert ((one.reap > 0) == (one.usage > 0)).all()


def test_every_arm_runs(tmp_path):
    six_domains(None, 30_000).save(tmp_path / "text")
    places = {}
    for number, arm in enumerate(ARMS):
        steps = []
        places[arm.name] = tmp_path / str(number)
        places[arm.name].mkdir()
        earlier = {name: places[name] for name in arm.after}
        metrics = run(Bench(arm, 0, places[arm.name], tmp_path / "text", earlier, 0.01, steps.append))
        assert steps == list(range(1, max(2, round(arm.steps * 0.01)) + 1))
        assert all(0.5 < metrics[name] < 7 for name in ("one-shot", "after") if name in metrics)
        if "experts" in metrics:
            assert sum(metrics["experts"]) == 12
            assert metrics["parameters"] == 12 * EXPERT
        if "by formula" in metrics:
            assert metrics["parameters"] == metrics["by formula"]
