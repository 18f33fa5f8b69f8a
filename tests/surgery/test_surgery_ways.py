"""Ways to choose channels: every way deals fairly, and finds what was planted."""

from __future__ import annotations

import pytest
import torch
from dense_layers import DOMAINS, INNER, TOKENS, WIDTH, dense

from coterie.errors import OptionError
from coterie.surgery.choose import Cut, choose_channels, most_used, shared_size
from coterie.surgery.feed_forward import FeedForward
from coterie.surgery.ways import WAYS

FROM_WEIGHTS = ("contiguous", "random", "kmeans")
FROM_TEXT = ("kmeans-activations", "co-activation")
BY_DOMAIN = ("activation", "gradient")


def test_every_way_is_in_one_of_the_groups():
    assert set(WAYS) == {*FROM_WEIGHTS, *FROM_TEXT, *BY_DOMAIN}


@pytest.mark.parametrize("way", sorted(WAYS))
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("shared", [0.0, 0.25])
def test_every_channel_is_dealt_out_once(way, gated, shared):
    layer = dense(gated=gated)
    found = choose_channels(layer, Cut(4, way, shared))
    assert found.whole
    assert found.own.shape == (4, (INNER - len(found.shared)) // 4)
    assert len(found.shared) == round(shared * INNER)
    again = choose_channels(dense(gated=gated), Cut(4, way, shared))
    assert torch.equal(found.own, again.own)
    assert torch.equal(found.shared, again.shared)


@pytest.mark.parametrize("way", FROM_WEIGHTS)
def test_some_ways_need_no_text(way):
    assert choose_channels(dense(seen=False), Cut(4, way, 0.25)).whole


@pytest.mark.parametrize("way", FROM_TEXT)
def test_others_say_that_they_need_one(way):
    with pytest.raises(OptionError, match="--text FILE"):
        choose_channels(dense(seen=False), Cut(4, way))


@pytest.mark.parametrize("way", BY_DOMAIN)
def test_an_expert_per_domain_or_a_sentence(way):
    with pytest.raises(OptionError, match="4 domains for 2 experts"):
        choose_channels(dense(), Cut(2, way))
    with pytest.raises(OptionError, match="0 domains for 4 experts"):
        choose_channels(dense(seen=False), Cut(4, way))


def test_gradients_that_were_not_collected():
    with pytest.raises(OptionError, match="--gradients"):
        choose_channels(dense(gradients={}), Cut(4, "gradient"))


def test_layers_and_seeds_differ_in_what_is_drawn():
    first = choose_channels(dense(), Cut(4, "random")).own
    assert not torch.equal(first, choose_channels(dense(layer=1), Cut(4, "random")).own)
    assert not torch.equal(first, choose_channels(dense(), Cut(4, "random", seed=1)).own)


def planted(kinds):
    """A layer whose channel c reads and fires by the kind ``kinds[c]``, on inputs of one kind each."""
    kinds = torch.as_tensor(kinds)
    count = int(kinds.max()) + 1
    read = torch.eye(count, WIDTH)[kinds] * 4 + 0.1 * torch.randn(len(kinds), WIDTH)
    tokens = torch.eye(count, WIDTH)[torch.arange(TOKENS) % count] * 4 + 0.5 * torch.randn(TOKENS, WIDTH)
    weights = {"gate_proj": read, "up_proj": read, "down_proj": torch.randn(WIDTH, len(kinds))}
    layer = FeedForward(weights, lambda up, gate: torch.relu(gate) * up, inputs=tokens)
    scores = {
        name: layer.activations(tokens[torch.arange(TOKENS) % count == number]).abs().mean(0)
        for number, name in enumerate(DOMAINS[:count])
    }
    return FeedForward(weights, layer.hidden, inputs=tokens, scores=scores, gradients=scores)


@pytest.mark.parametrize("way", ["kmeans", *FROM_TEXT, *BY_DOMAIN])
def test_channels_that_belong_together_are_found(way):
    kinds = torch.arange(80) % 4
    layer = planted(kinds)
    found = choose_channels(layer, Cut(4, way))
    counts = [kinds[own].bincount(minlength=4) for own in found.own]
    assert sorted(int(count.argmax()) for count in counts) == [0, 1, 2, 3]
    # by co-activation, channels that never fire may be anywhere
    assert sum(int(count.max()) for count in counts) >= (60 if way == "co-activation" else 80)


def test_the_domains_are_the_experts_in_their_order():
    kinds = torch.arange(32) % 4
    found = choose_channels(planted(kinds), Cut(4, "activation"))
    assert [kinds[own].unique().tolist() for own in found.own] == [[0], [1], [2], [3]]


def test_a_share_that_leaves_equal_parts():
    assert shared_size(32, 4, 0.25) == 8
    assert shared_size(34, 4, 0.3) == 10  # 24 are left
    assert shared_size(34, 4, 0.2) == 6
    assert shared_size(32, 4, 0.0) == 0
    with pytest.raises(OptionError, match="34 channels do not fall into 4"):
        choose_channels(FeedForward(
            {"up_proj": torch.randn(34, 4), "down_proj": torch.randn(4, 34)}, lambda up, gate: up), Cut(4, "random")
        )  # fmt: skip


def test_read_me_takes_the_most_active_with_ties_to_the_lower_channel():
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert most_used(scores, 3).tolist() == [[1, 2, 4], [0, 1, 2]]


def test_read_me_lists_with_and_without_their_permanent_part():
    layer = dense()
    fused = choose_channels(layer, Cut(4, "activation", density=0.5))
    split = choose_channels(layer, Cut(4, "activation", density=0.5, permanent=True))
    assert fused.own.shape == (4, INNER // 2)
    assert not len(fused.shared)
    for expert, name in enumerate(DOMAINS):
        best = layer.scores[name].topk(INNER // 2).indices.sort().values
        assert torch.equal(fused.of(expert), best)
        assert torch.equal(split.of(expert), best)
    everywhere = set.intersection(*(set(fused.of(expert).tolist()) for expert in range(4)))
    assert set(split.shared.tolist()) == everywhere


def test_full_density_gives_everybody_everything():
    found = choose_channels(dense(), Cut(4, "activation", density=1.0, permanent=True))
    assert len(found.shared) == INNER
    assert found.own.shape == (4, 0)


def test_permuted_channels_permute_the_lists():
    layer = dense()
    order = torch.randperm(INNER)
    moved = FeedForward(
        {name: weight[:, order] if name == "down_proj" else weight[order] for name, weight in layer.weights.items()},
        layer.hidden, inputs=layer.inputs, scores={name: score[order] for name, score in layer.scores.items()},
    )  # fmt: skip
    before = choose_channels(layer, Cut(4, "activation", density=0.5))
    after = choose_channels(moved, Cut(4, "activation", density=0.5))
    for expert in range(4):
        assert torch.equal(order[after.of(expert)].sort().values, before.of(expert))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"experts": 0}, "1 expert or more"), ({"experts": 4, "way": "kmean"}, "Did you mean 'kmeans'"),
        ({"experts": 4, "shared": 1.0}, "below 1"), ({"experts": 4, "way": "activation", "density": 1.5}, "Try 0.5"),
        ({"experts": 4, "density": 0.5}, "which kmeans does not know"),
        ({"experts": 4, "way": "activation", "density": 0.5, "shared": 0.2}, "choose permanent"),
        ({"experts": 4, "permanent": True}, "goes with a density"),
    ],
)  # fmt: skip
def test_options_that_do_not_go_together(options, what):
    with pytest.raises(OptionError, match=what):
        Cut(**options)
