"""AdvMoE's studies: their claims on made-up metrics, their images, and a run of a few steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from coterie.errors import OptionError
from coterie.models.vision import VisionSpec, vision_cost
from coterie.studies import Bench, judge
from coterie.studies.advmoe import (
    ALTERNATING,
    CLAIMS,
    DENSE,
    JOINT,
    MOVING,
    RELEASED,
    RUNNING,
    SETTING,
    SHARED,
    SMALL,
    STUDY,
    run,
    savings,
)  # fmt: skip
from coterie.studies.advmoe_data import digits_of_two_domains, images_of, packed, sampled, unpacked
from coterie.studies.advmoe_images import STUDY as OF_IMAGES
from coterie.studies.advmoe_images import setting
from coterie.training.images import ImageData

HALF = dict.fromkeys(("resnet18", "wrn28_10", "vgg16", "densenet40"), 0.6)
PLAIN = {"finite": 1.0, "robust": 0.6}
ROUTED = {**PLAIN, "robust": 0.7, "least load": 0.4, "domain": 0.99, "released": 0.8, "end to end": 0.7}
GOOD = {
    DENSE: {**PLAIN, "saving, paper's router": HALF, "saving, ResNet-8 router": HALF},
    SMALL: {**PLAIN, "robust": 0.5},
    JOINT: ROUTED,
    ALTERNATING: {**ROUTED, "robust": 0.71},
    MOVING: ROUTED,
    RUNNING: ROUTED,
    SHARED: {**ROUTED, "robust": 0.4},
    RELEASED: ROUTED,
}


def verdict(key, changes=None, seeds=3):
    """Of a claim, with some numbers changed in the last seed: (arm, metric) -> value."""
    (claim,) = (one for one in CLAIMS if one.key == key)
    by_seed = {seed: {arm: {**metrics} for arm, metrics in GOOD.items()} for seed in range(seeds)}
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
        ("a", {(JOINT, "robust"): 0.5}),  # no better in one seed
        ("a", {(SMALL, "robust"): 0.699, (JOINT, "robust"): 0.7, (ALTERNATING, "robust"): 0.4}),
        ("b", {(ALTERNATING, "least load"): 0.09}),
        ("c", {(RELEASED, "finite"): 0.0}),
        ("d", {(JOINT, "domain"): 0.949}),
        ("f", {(ALTERNATING, "robust"): 0.35}),
        ("g", {(SHARED, "robust"): 0.7}),
        ("h", {(ALTERNATING, "released"): 0.7}),
        ("i", {(DENSE, "saving, paper's router"): {**HALF, "densenet40": 0.19}}),
        ("j", {(DENSE, "saving, ResNet-8 router"): {**HALF, "vgg16": 0.5}}),
    ],
)
def test_a_claim_can_fail(key, changes):
    assert verdict(key, changes) == "does not hold"


def test_the_order_of_the_paper_is_told_and_not_gated():
    assert verdict("e", {(ALTERNATING, "robust"): 0.7}) == "not shown"
    assert "".join(claim.key for claim in CLAIMS if claim.gated) == "abcd"


def test_four_points_are_asked_for_on_average():
    less = {"robust": 0.539}
    by_seed = {seed: {**GOOD, JOINT: {**ROUTED, **less}, ALTERNATING: {**ROUTED, **less}} for seed in range(3)}
    assert judge(CLAIMS[0], by_seed).verdict == "does not hold"


def test_what_half_width_experts_save():
    found = savings()
    paper = found["saving, paper's router"]
    assert {name: round(value, 2) for name, value in paper.items()} == {
        "resnet18": 0.65, "wrn28_10": 0.74, "vgg16": 0.62, "densenet40": 0.19,
    }  # fmt: skip
    assert min(found["saving, ResNet-8 router"].values()) > 0.5
    assert paper["vgg16"] == vision_cost(VisionSpec("vgg16", experts=2, ratio=0.5)).saving


def test_images_travel_as_they_are():
    images = torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)
    data = ImageData(images, torch.tensor([0, 1, 1, 0]), ("cat", "dog"))
    corpus = packed("pets", data, data.select([1, 2]))
    learn, measure = unpacked(corpus)
    assert torch.equal(learn.images, images)
    assert learn.images.dtype == torch.uint8
    assert measure.labels.tolist() == [1, 1]
    assert measure.classes == ("cat", "dog")
    assert corpus.digest == packed("pets", data, data.select([1, 2])).digest


def test_every_second_digit_is_inverted():
    learn, measure = unpacked(digits_of_two_domains(None))
    assert (len(learn), len(measure)) == (1297, 500)
    bright = measure.images.flatten(1).mean(1)
    assert float(bright[0::2].max()) < float(bright[1::2].min())  # a digit is mostly background


def test_a_sample_is_always_the_same():
    data = ImageData(torch.zeros(20, 1, 4, 4), torch.arange(20) % 2, ("a", "b"))
    assert sampled(data, 30) is data
    assert sampled(data, 5).labels.tolist() == sampled(data, 5).labels.tolist()
    assert len(sampled(data, 5)) == 5


def test_which_images_belong_to_which_study(tmp_path):
    with pytest.raises(OptionError, match="coterie reproduce advmoe-images --data"):
        digits_of_two_domains(tmp_path)
    with pytest.raises(OptionError, match="--data"):
        images_of(None)


def test_the_users_images(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 8)):
        np.savez(
            tmp_path / f"some_{part}.npz", images=random.integers(0, 255, (count, 8, 8, 3), dtype=np.uint8),
            labels=np.arange(count) % 2,
        )  # fmt: skip
    learn, measure = unpacked(images_of(tmp_path))
    assert (len(learn), len(measure)) == (12, 8)
    learn, measure = unpacked(images_of(tmp_path / "some_train.npz"))
    assert len(learn) + len(measure) == 12


def test_the_longer_study_is_the_papers_where_there_is_an_accelerator():
    paper = setting(True)
    assert (paper.dense.width, paper.epsilon, paper.steps, paper.step_size) == (1.0, 8 / 255, 10, 2 / 255)
    assert setting(False).dense.width < 1
    assert [claim.key for claim in OF_IMAGES.claims if claim.gated] == ["a", "b", "c"]


def test_every_arm_runs(tmp_path):
    digits_of_two_domains(None).save(tmp_path / "text")
    for arm in STUDY.arms:
        steps = []
        place = tmp_path / arm.name
        place.mkdir()
        metrics = run(Bench(arm, 0, place, tmp_path / "text", scale=0.04, tell=steps.append))
        assert steps == list(range(1, 1297 // SETTING.batch + 1))
        assert 0 <= metrics["robust, all attacks"] <= metrics["robust"] <= metrics["end to end"] <= 1
        assert metrics["finite"] == 1
        if arm.name in (DENSE, SMALL):
            assert "flips" not in metrics
        else:
            assert 0 <= metrics["least load"] <= 0.5 <= metrics["domain"] <= 1
            assert metrics["worst route"] <= metrics["clean"]
