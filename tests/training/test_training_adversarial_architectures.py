"""Every architecture, dense and of experts: one step of training, an attack, saved and loaded, at a small width."""

from __future__ import annotations

import pytest
import torch

from coterie.models.vision import VisionSpec, build_vision, load_vision, save_vision
from coterie.training.adversarial import (
    Attack,
    Learner,
    Phases,
    RobustLosses,
    RobustOptions,
    perturb,
    training_attack,
    view,
)

SIZES = {
    "resnet18": (16, 0.0625),
    "wrn28_10": (8, 0.025),
    "vgg16": (16, 0.0625),
    "densenet40": (8, 0.5),
    "small": (8, 0.5),
}


def make(architecture, **words):
    size, width = SIZES[architecture]
    spec = VisionSpec(
        architecture, classes=3, channels=3, image_size=size, width=width, router="resnet8", router_width=2, **words
    )
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    return build_vision(spec, 0), images, torch.arange(8) % 3


@pytest.mark.parametrize("architecture", SIZES)
@pytest.mark.parametrize(
    ("regime", "words"),
    [
        ("alternating", {"experts": 2, "ratio": 0.5}),
        ("joint", {"experts": 2, "ratio": 0.5, "placement": "layer"}),
        ("joint", {}),
    ],
    ids=["experts", "layers", "dense"],
)
def test_a_step_an_attack_and_back_from_disk(tmp_path, architecture, regime, words):
    model, images, labels = make(architecture, **words)
    losses = RobustLosses(beta=1, drift=1 if words else 0, balance=0.1 if words else 0)
    options = RobustOptions(regime, losses=losses, attack=training_attack(regime, steps=1))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    record = Phases(model, options, Learner(model, options, 4)).step(
        0, {"experts": (images, labels), "router": (images.flip(0), labels.flip(0))}
    )
    assert record["loss"] > 0
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(before[name], tensor)}
    assert len(moved) > 0.8 * len(before)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in model.state_dict().values())
    model.eval()
    found = perturb(model, images, labels, Attack(8 / 255, 2, 4 / 255, aim="kl+router" if words else "kl"))
    assert 0 < float((found - images).abs().max()) <= 8 / 255 + 1e-7
    save_vision(model, tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(view(load_vision(tmp_path / "net"), found).classes, view(model, found).classes)
