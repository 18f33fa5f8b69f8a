"""Losses of robust training: finite however far logits lie apart, and what their formulas say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from coterie.errors import OptionError
from coterie.models.vision import VisionSpec, build_vision
from coterie.training.adversarial import (
    image_divergence,
    route_balance,
    route_divergence,
    route_drift,
    route_z,
    trades,
    view,
    view_routers,
    wrong_by,
)

SPEC = VisionSpec("small", classes=4, channels=1, image_size=8, experts=3, ratio=0.5, router="small")


def seen(count=8, seed=0, spec=SPEC):
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    return view(build_vision(spec, 0), images)


def reference(clean, perturbed):
    """KL in float64, by its definition; p log p is 0 where p is."""
    p, q = clean.double().softmax(1), perturbed.double().log_softmax(1)
    return (torch.xlogy(p, p) - p * q).sum(1)


@settings(max_examples=60, deadline=None)
@given(gap=st.floats(0, 2000), scale=st.floats(0.1, 30), seed=st.integers(0, 2**20))
def test_the_divergence_is_its_definition_and_its_gradients_are_finite(gap, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    clean, perturbed = (torch.randn(5, 4, generator=generator) * scale for _ in range(2))
    clean[0, 0] += gap
    perturbed[1, 2] += gap
    clean.requires_grad_(True)
    perturbed.requires_grad_(True)
    found = image_divergence(clean, perturbed)
    assert torch.allclose(found.double(), reference(clean.detach(), perturbed.detach()), rtol=1e-5, atol=1e-5)
    found.sum().backward()
    assert bool(torch.isfinite(clean.grad).all())
    assert bool(torch.isfinite(perturbed.grad).all())


@pytest.mark.parametrize("gap", [1e3, -1e3])
def test_a_router_whose_logits_are_a_thousand_apart_stays_finite(gap):
    """The published trainer's router is lost here: its target underflows, and the gradient of x log x is NaN."""
    clean = torch.tensor([[gap, 0.0]], requires_grad=True)
    perturbed = torch.tensor([[0.0, gap]], requires_grad=True)
    loss = image_divergence(clean, perturbed).mean()
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1e3, rel=1e-5)
    assert bool(torch.isfinite(clean.grad).all() and torch.isfinite(perturbed.grad).all())


def test_trades_is_cross_entropy_and_a_share_of_the_divergence():
    clean, perturbed, labels = torch.randn(6, 4), torch.randn(6, 4), torch.randint(4, (6,))
    expected = F.cross_entropy(clean, labels) + 6 * reference(clean, perturbed).mean().float()
    assert torch.allclose(trades(clean, perturbed, labels, 6), expected)
    assert torch.equal(trades(clean, perturbed, labels, 0), F.cross_entropy(clean, labels))
    assert float(image_divergence(clean, clean).abs().max()) < 1e-6


def test_the_margin_of_a_mistake():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 4.0]])
    assert wrong_by(logits, torch.tensor([1, 2])).tolist() == [-1.0, 1.0]


def test_losses_of_routers():
    one, other = seen(seed=1), seen(seed=2)
    assert float(route_drift(one, one).detach().abs()) < 1e-6
    expected = reference(one.routings[0].logits, other.routings[0].logits).float()
    assert torch.allclose(route_divergence(one, other), expected, atol=1e-5)
    assert torch.allclose(route_drift(one, other), expected.mean(), atol=1e-5)
    routing = one.routings[0]
    share = torch.bincount(routing.chosen[:, 0], minlength=3) / 8
    assert torch.allclose(route_balance(one), 3 * (share * routing.logits.softmax(1).mean(0)).sum())
    both = (route_balance(one) + route_balance(other)) / 2
    assert torch.allclose(route_balance(one, other), both)
    assert torch.allclose(route_z(one), routing.logits.logsumexp(1).square().mean())


def test_one_router_is_seen_once_and_many_are_averaged():
    assert len(seen().routings) == 1
    layers = VisionSpec("small", classes=4, channels=1, image_size=8, experts=3, ratio=0.5, placement="layer")
    one, other = seen(seed=1, spec=layers), seen(seed=2, spec=layers)
    each = [reference(a.logits, b.logits) for a, b in zip(one.routings, other.routings, strict=True)]
    assert len(each) == 3
    assert torch.allclose(route_divergence(one, other).double(), torch.stack(each).mean(0), atol=1e-5)


def test_a_dense_network_has_no_losses_of_routers():
    dense = VisionSpec("small", classes=4, channels=1, image_size=8)
    one = seen(spec=dense)
    assert one.routings == ()
    for ask in (lambda: route_drift(one, one), lambda: route_balance(one), lambda: route_z(one)):
        with pytest.raises(OptionError, match="none decides here"):
            ask()
    with pytest.raises(OptionError, match="none decides here"):
        view_routers(build_vision(dense, 0), torch.rand(2, 1, 8, 8))
