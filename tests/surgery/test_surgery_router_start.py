"""First rows of a router: better than chance where they saw text, of the asked length, or a sentence."""

from __future__ import annotations

import pytest
import torch
from dense_layers import WIDTH, dense

from coterie.errors import OptionError
from coterie.surgery.choose import Cut, choose_channels
from coterie.surgery.feed_forward import FeedForward
from coterie.surgery.router_start import ROUTER_STARTS, agreement, contributions, first_rows
from coterie.surgery.split import expert_outputs

FROM_TEXT = ("means", "fit", "representative")


def seen():
    """A layer, its channels, and what each expert is worth on its sample."""
    layer = dense()
    channels = choose_channels(layer, Cut(4, "kmeans-activations"))
    own, _ = expert_outputs(layer, channels, layer.activity)
    return layer, channels, contributions(own, own.sum(0))


def test_contributions_sum_to_one():
    _, _, worth = seen()
    assert torch.allclose(worth.sum(1), torch.ones(len(worth)), atol=1e-4)


@pytest.mark.parametrize("start", sorted(ROUTER_STARTS))
@pytest.mark.parametrize("sharpness", [1e-3, 1.0])
def test_logits_vary_as_asked(start, sharpness):
    layer, channels, worth = seen()
    rows = first_rows(start, layer, channels.own, worth, sharpness=sharpness)
    assert rows.shape == (4, WIDTH)
    logits = layer.inputs @ rows.T
    spread = (logits - logits.mean(1, keepdim=True)).square().mean().sqrt()
    assert float(spread) == pytest.approx(0 if start == "zero" else sharpness, rel=1e-4)


@pytest.mark.parametrize("start", FROM_TEXT)
def test_what_saw_text_chooses_better_than_chance(start):
    layer, channels, worth = seen()
    rows = first_rows(start, layer, channels.own, worth)
    assert agreement(rows, layer.inputs, worth, 1) > 0.4  # chance is a quarter
    assert agreement(rows, layer.inputs, worth, 4) == 1


def test_a_linear_worth_is_fitted_exactly_with_few_and_with_many_tokens():
    rows = torch.randn(3, WIDTH)
    for tokens in (WIDTH // 2, 40 * WIDTH):
        x = torch.randn(tokens, WIDTH)
        layer = FeedForward(dense(seen=False).weights, dense().hidden, inputs=x)
        found = first_rows("fit", layer, torch.zeros(3, 2, dtype=torch.int64), x @ rows.T, sharpness=1.0)
        assert agreement(found, x, x @ rows.T, 1) > 0.9


@pytest.mark.parametrize("start", FROM_TEXT)
def test_without_text_they_say_so(start):
    layer = dense(seen=False)
    with pytest.raises(OptionError, match="--text FILE"):
        first_rows(start, layer, torch.arange(32).view(4, 8), None)


@pytest.mark.parametrize("start", ["zero", "random"])
def test_others_need_none(start):
    layer = dense(seen=False)
    rows = first_rows(start, layer, torch.arange(32).view(4, 8), None, sharpness=0.5)
    # of an input of length sqrt(D), as an RMS norm leaves it
    x = torch.nn.functional.normalize(torch.randn(4000, WIDTH), dim=1) * WIDTH**0.5
    assert float((x @ rows.T).std()) == pytest.approx(0 if start == "zero" else 0.5, rel=0.3)


def test_random_rows_hang_on_seed_and_layer():
    own = torch.arange(32).view(4, 8)
    first = first_rows("random", dense(seen=False), own, None)
    assert torch.equal(first, first_rows("random", dense(seen=False), own, None))
    assert not torch.equal(first, first_rows("random", dense(seen=False), own, None, seed=1))
    assert not torch.equal(first, first_rows("random", dense(seen=False, layer=1), own, None))


def test_a_start_that_is_not_known():
    with pytest.raises(OptionError, match="Did you mean 'means'"):
        first_rows("mean", dense(), torch.arange(32).view(4, 8), None)
