"""The Adversarial Robustness Toolbox on our models: where the answer is known, it finds the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attack_models import Linear, patterns, trained

from coterie.errors import MissingExtraError
from coterie.jobs.attacking import Kind, Threat, art, attack
from coterie.training.images import ImageData

EPSILON = 0.1


@pytest.fixture(autouse=True)
def less_work(monkeypatch):
    monkeypatch.setattr(art, "_ITERATIONS", 8)
    monkeypatch.setattr(art, "_QUERIES", 20)


@pytest.fixture
def toolbox():
    pytest.importorskip("art")
    pytest.importorskip("multiprocess")


def test_a_missing_toolbox_says_what_to_type(monkeypatch):
    monkeypatch.setattr(art, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'coterie\[attacks\]'"):
        attack(Linear(torch.randn(2, 64), torch.zeros(2)), patterns(10), Threat(0.1, 1), art=True)


@torch.no_grad()
def test_both_find_what_can_be_found_in_a_linear_model(toolbox):
    model = Linear(torch.randn(3, 16), torch.zeros(3))
    images = torch.rand(60, 1, 4, 4) * 0.6 + 0.2
    labels = model(images).argmax(1)
    report = attack(model, ImageData(images, labels, tuple("abc"), "drawn"), Threat(EPSILON, 8, 0.05), art=True)
    lead = model(images).gather(1, labels[:, None]) - model(images)
    most = EPSILON * (model.weight[labels][:, None] - model.weight[None]).abs().sum(2)
    left = ((lead - most) > 0).scatter(1, labels[:, None], True).all(1)
    assert 0 < left.sum() < 60
    assert torch.equal(report.outcome("art-autoattack").correct, left)
    assert torch.equal(report.outcome("margin").correct, left)
    assert report.outcome("art-pgd").accuracy >= float(left.double().mean()) - 1e-9
    assert report.outcome("art-pgd").accuracy < 1
    assert report.trusted


def test_a_model_of_experts_is_attacked_and_left_as_it_was(toolbox):
    model, data = trained(steps=40), patterns(40, seed=2)
    model.train()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    np.random.seed(3)
    drawn = np.random.get_state()[1].copy()
    report = attack(model, data, Threat(0.15, 4, images=30), art=True)
    assert (np.random.get_state()[1] == drawn).all()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(next(model.parameters()).grad, torch.ones_like(next(model.parameters())))
    for key in ("art-pgd", "art-autoattack"):
        outcome = report.outcome(key)
        assert outcome.kind is Kind.ATTACK
        assert outcome.kept is not None
        assert outcome.distance <= 0.15 + 1e-6
        assert report.robust_accuracy <= outcome.accuracy
    again = attack(model, data, Threat(0.15, 4, images=30), art=True)
    assert again.outcome("art-autoattack").accuracy == report.outcome("art-autoattack").accuracy
