"""A layer cut: slice is mask, all on is dense, layouts agree, permuting channels changes nothing."""

from __future__ import annotations

import pytest
import torch
from dense_layers import INNER, WIDTH, as_layer, dense, output

from coterie.errors import OptionError
from coterie.surgery.channels import LayerChannels
from coterie.surgery.choose import Cut, choose_channels
from coterie.surgery.feed_forward import FeedForward
from coterie.surgery.split import expert_outputs, fitted_scale, one_expert, split_layer

KINDS = [{"gated": gated, "bias": bias} for gated in (True, False) for bias in (True, False)]


@pytest.fixture
def x():
    return torch.randn(20, WIDTH)


def mixture(layer, parts, x, weights):
    """[n, D] of experts weighted alike for all items, and of the shared expert."""
    total = torch.zeros(len(x), layer.width)
    for expert, weight in enumerate(weights):
        own = {name: part[expert] for name, part in parts.experts.items()}
        total += weight * output(as_layer(layer, own), x)
    return total if parts.shared is None else total + output(as_layer(layer, parts.shared), x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("density", [0.25, 0.5])
def test_the_slice_is_the_mask(kind, density, x):
    layer = dense(**kind)
    channels = choose_channels(layer, Cut(4, "activation", density=density, permanent=True))
    for expert in range(4):
        keep = channels.of(expert)
        sliced = output(as_layer(layer, one_expert(layer, channels, expert)), x)
        assert torch.allclose(sliced, output(layer, x, keep), atol=1e-4, rtol=0)


def test_the_slice_is_the_mask_bit_for_bit_where_sums_are_exact():
    """Small whole numbers: no order of addition can matter."""
    weights = {"up_proj": torch.randint(-3, 4, (INNER, WIDTH)), "down_proj": torch.randint(-3, 4, (WIDTH, INNER))}
    layer = FeedForward({name: weight.float() for name, weight in weights.items()}, lambda up, gate: torch.relu(up))
    channels = choose_channels(layer, Cut(4, "random"))
    x = torch.randint(-2, 3, (20, WIDTH)).float()
    for expert in range(4):
        sliced = output(as_layer(layer, one_expert(layer, channels, expert)), x)
        assert torch.equal(sliced, output(layer, x, channels.of(expert)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts", [2, 4, 8])
@pytest.mark.parametrize("shared", [0.0, 0.25])
def test_all_on_is_the_dense_layer(kind, experts, shared, x):
    layer = dense(**kind)
    channels = choose_channels(layer, Cut(experts, "kmeans", shared))
    parts = split_layer(layer, channels, scale=experts)
    found, wanted = mixture(layer, parts, x, [1 / experts] * experts), output(layer, x)
    assert (found - wanted).abs().max() <= 1e-6 * wanted.abs().max() * 4


def test_all_on_in_bfloat16_loses_nothing_where_the_factor_is_a_power_of_two(x):
    layer = dense(dtype=torch.bfloat16)
    channels = choose_channels(layer, Cut(4, "kmeans"))
    parts = split_layer(layer, channels, scale=4)
    assert parts.experts["down_proj"].dtype == torch.bfloat16
    assert torch.allclose(mixture(layer, parts, x, [0.25] * 4), output(layer, x), atol=1e-4)


def test_full_density_makes_every_expert_the_dense_layer(x):
    layer = dense(bias=True)
    channels = choose_channels(layer, Cut(4, "activation", density=1.0))
    parts = split_layer(layer, channels)
    for weights in ([1, 0, 0, 0], [0.1, 0.2, 0.3, 0.4]):
        assert torch.allclose(mixture(layer, parts, x, weights), output(layer, x), atol=1e-4)


def test_fused_and_split_layouts_are_the_same_function(x):
    layer = dense(bias=True)
    split = choose_channels(layer, Cut(4, "activation", density=0.5, permanent=True))
    assert len(split.shared)
    for weights in ([1, 0, 0, 0], [0.5, 0.0, 0.5, 0.0]):
        one = mixture(layer, split_layer(layer, split), x, weights)
        other = mixture(layer, split_layer(layer, split.fused()), x, weights)
        assert torch.allclose(one, other, atol=1e-4)


def test_permuting_the_channels_changes_no_function(x):
    layer = dense()
    order = torch.randperm(INNER)
    moved = as_layer(layer, {
        name: weight[:, order] if name == "down_proj" else weight[order] for name, weight in layer.weights.items()
    })  # fmt: skip
    assert torch.allclose(output(moved, x), output(layer, x), atol=1e-4)
    channels = choose_channels(layer, Cut(4, "random"))
    back = order.argsort()
    same = LayerChannels(channels.shared, back[channels.own].sort(dim=1).values, INNER)
    for expert in range(4):
        one = output(as_layer(moved, one_expert(moved, same, expert)), x)
        assert torch.allclose(one, output(layer, x, channels.of(expert)), atol=1e-4)


def test_filling_up_with_zeros_changes_no_function(x):
    layer = dense(bias=True)
    channels = choose_channels(layer, Cut(4, "kmeans", 0.25))
    parts = split_layer(layer, channels, scale=4)
    full = split_layer(layer, channels, scale=4, own_size=9, shared_size=13)
    assert full.experts["up_proj"].shape == (4, 9, WIDTH)
    assert full.experts["down_proj"].shape == (4, WIDTH, 9)
    assert full.experts["up_proj_bias"].shape == (4, 9)
    assert full.shared["gate_proj"].shape == (13, WIDTH)
    assert torch.allclose(mixture(layer, full, x, [0.25] * 4), mixture(layer, parts, x, [0.25] * 4), atol=1e-4)
    with pytest.raises(OptionError, match="does not go into 5"):
        split_layer(layer, channels, own_size=5)


def test_a_shared_expert_may_be_all_zeros(x):
    layer = dense()
    channels = choose_channels(layer, Cut(4, "kmeans"))
    parts = split_layer(layer, channels, scale=4, shared_size=1)
    assert not parts.shared["down_proj"].any()
    assert torch.allclose(mixture(layer, parts, x, [0.25] * 4), output(layer, x), atol=1e-4)


def test_channels_of_another_layer_are_refused():
    channels = LayerChannels(torch.tensor([], dtype=torch.int64), torch.arange(16).view(4, 4), 16)
    with pytest.raises(OptionError, match="a layer with 16"):
        split_layer(dense(), channels)


def test_parameters_are_what_the_lists_say():
    layer = dense(bias=True)
    channels = choose_channels(layer, Cut(4, "activation", density=0.5, permanent=True))
    parts = split_layer(layer, channels)
    own, shared = channels.own.shape[1], len(channels.shared)
    assert sum(part.numel() for part in parts.experts.values()) == 4 * (3 * WIDTH * own + 2 * own + WIDTH)
    assert sum(part.numel() for part in parts.shared.values()) == 3 * WIDTH * shared + 2 * shared + WIDTH


def test_the_mean_over_all_choices_is_the_dense_layer(x):
    """k of the experts, made larger by E / k, are an estimate of all of them."""
    layer = dense()
    channels = choose_channels(layer, Cut(4, "random"))
    own, _ = expert_outputs(layer, channels, layer.activations(x))
    pairs = [4 * own[[i, j]].mean(0) for i in range(4) for j in range(i)]
    assert torch.allclose(torch.stack(pairs).mean(0), output(layer, x), atol=1e-4)


def test_the_fitted_factor_is_the_best_one():
    layer = dense()
    channels = choose_channels(layer, Cut(4, "co-activation"))
    own, _ = expert_outputs(layer, channels, layer.activity)
    chosen = own.norm(dim=2).T.topk(2, dim=1).indices
    scale = fitted_scale(own, chosen)
    assert 2 <= scale <= 4
    items = torch.arange(len(layer.activity))
    mean = (own[chosen[:, 0], items] + own[chosen[:, 1], items]) / 2

    def error(factor):
        return float((factor * mean - own.sum(0)).square().sum())

    assert error(scale) <= min(error(scale * 1.01), error(scale * 0.99))
    everybody = torch.arange(4).expand(len(items), -1)
    assert fitted_scale(own, everybody) == pytest.approx(4)
