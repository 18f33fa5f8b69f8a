"""Models that only look robust, each caught by the checks that are there for it."""

from __future__ import annotations

import copy

import pytest
import torch
from attack_models import Around, Linear, patterns, trained
from torch import nn

from coterie.errors import AttackError, CheckpointError
from coterie.jobs.attacking import Threat, Verdict, attack
from coterie.models.vision import save_vision

THREAT = Threat(0.15, 8, images=60)
DATA = patterns(80, seed=1)


@pytest.fixture(scope="module")
def sound():
    return trained()


def failed(report):
    return {check.name for check in report.checks if check.verdict is Verdict.FAILED}


def test_the_sound_model_raises_no_doubt(sound):
    report = attack(sound, DATA, THREAT)
    assert failed(report) == set()
    assert report.exit_code == 0
    assert "no reason for doubt" in report.describe()


@pytest.mark.parametrize("part", ["router", "network"])
def test_nan_ends_the_attack_without_a_number(sound, part):
    model = copy.deepcopy(sound)
    module = model.planner.router if part == "router" else model.network
    with torch.no_grad():
        next(module.parameters())[0] = float("nan")
    with pytest.raises(AttackError, match="NaN or infinity"):
        attack(model, DATA, THREAT)


def test_nan_in_a_statistic_ends_it_too(sound):
    model = copy.deepcopy(sound)
    next(buffer for name, buffer in model.named_buffers() if "running_var" in name)[0] = float("inf")
    with pytest.raises(AttackError, match="running_var"):
        attack(model, DATA, THREAT)


def test_a_checkpoint_with_nan_is_not_even_written_or_read(sound, tmp_path):
    model = copy.deepcopy(sound)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(CheckpointError, match="NaN"):
        save_vision(model, tmp_path / "model")


def test_answers_that_are_no_numbers_end_the_attack_though_the_weights_are(sound):
    model = Around(sound, logits=lambda x: x * float("inf"))
    with pytest.raises(AttackError, match="loss of 60 of 60"):
        attack(model, DATA, THREAT)


def test_a_gradient_that_is_no_number_ends_the_attack_though_the_answers_are(sound):
    model = Around(sound, images=lambda x: x + 0 * (x - x.detach()).abs().sqrt())
    with pytest.raises(AttackError, match="not a finite number"):
        attack(model, DATA, THREAT)


def test_huge_logits_have_no_gradient_and_the_margin_sees_through_them(sound):
    report = attack(Around(sound, logits=lambda x: x * 1e6), DATA, THREAT)
    assert "gradients" in failed(report)
    assert report.exit_code == 1
    assert report.outcome("margin").accuracy < report.outcome("end-to-end").accuracy


def test_pixels_that_are_rounded_have_no_gradient_and_a_search_needs_none(sound):
    report = attack(Around(sound, images=lambda x: (x * 8).round() / 8), DATA, THREAT)
    assert {"gradients", "loss rises with steps", "unbounded attack", "gradient-free finds no more"} <= failed(report)
    assert report.outcome("end-to-end").accuracy == report.clean_accuracy  # it looks perfectly robust
    assert report.robust_accuracy < report.clean_accuracy
    assert "NOT TO BE TRUSTED: gradients" in report.describe()


def test_gradients_that_point_elsewhere_are_worse_than_none(sound):
    class Misled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return -grad

    report = attack(Around(sound, images=Misled.apply), DATA, THREAT)
    assert {"loss rises with steps", "unbounded attack", "gradient-free finds no more"} <= failed(report)


def test_a_collapsed_router_is_said(sound):
    model = copy.deepcopy(sound)
    with torch.no_grad():
        [layer for layer in model.planner.router.modules() if isinstance(layer, nn.Linear)][-1].bias[1] += 1e4
    report = attack(model, DATA, THREAT)
    (check,) = [check for check in report.checks if check.name == "experts used"]
    assert check.verdict is Verdict.WARNING
    assert "collapsed: expert 1 has all images" in check.text
    assert "1 warning" in report.describe()
    assert [row.images for row in report.expert_rows] == [0, 60]


def test_chance_in_the_model_is_found(sound):
    report = attack(Around(sound, logits=lambda x: x + torch.randn_like(x)), DATA, THREAT)
    assert "repeatable" in failed(report)


def test_a_model_that_looks_at_the_whole_batch_is_found(sound):
    report = attack(Around(sound, images=lambda x: (x - x.mean(0) + 0.5).clamp(0, 1)), DATA, THREAT)
    assert "independent of batch" in failed(report)
    assert "repeatable" not in failed(report)


def test_a_model_that_is_never_right_is_judged_without_a_number_of_its_own(sound):
    report = attack(Around(sound, logits=lambda x: x.roll(1, dims=1)), DATA, THREAT)
    assert report.clean_accuracy == report.robust_accuracy == 0
    skipped = {check.name for check in report.checks if check.verdict is Verdict.SKIPPED}
    assert {"gradients", "loss rises with steps", "unbounded attack", "restarts help little"} <= skipped
    assert report.html()


def test_a_constant_answer_is_no_robustness():
    report = attack(Linear(torch.zeros(4, 64), torch.tensor([1.0, 0, 0, 0])), DATA, THREAT)
    assert report.robust_accuracy == report.clean_accuracy > 0
    assert {"gradients", "unbounded attack", "loss rises with steps"} <= failed(report)
