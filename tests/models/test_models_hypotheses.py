"""Weights made in a known way are recognised as made that way, and others are not."""

from __future__ import annotations

import pytest
import torch

from coterie.models.hypotheses import SCORES, Weighing, chosen_as, confined, same_choice, weighed_as


@pytest.fixture
def logits():
    return torch.randn(32, 12)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("renormalised", [True, False])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_every_known_way_to_weigh_is_recognised(score, renormalised, scale, logits):
    indices = chosen_as(logits, 3)
    weights = SCORES[score](logits).gather(1, indices)
    if renormalised:
        weights = weights / weights.sum(-1, keepdim=True)
    found = weighed_as(logits, indices, weights * scale)
    assert (found.score, found.renormalised) == (score, renormalised)
    assert found.scale == pytest.approx(scale, rel=1e-4)


def test_a_softmax_over_the_chosen_is_a_renormalised_softmax(logits):
    top = logits.topk(4)
    assert weighed_as(logits, top.indices, top.values.softmax(-1)).score == "softmax"


def test_weights_of_another_kind_are_not_known(logits):
    indices = chosen_as(logits, 3)
    assert weighed_as(logits, indices, torch.rand(32, 3)) is None
    assert weighed_as(logits, indices, torch.zeros(32, 3)) is None


def test_one_choice_of_constant_weight_does_not_tell_the_score(logits):
    assert weighed_as(logits, chosen_as(logits, 1), torch.ones(32, 1)) == Weighing(None, True, 1.0)


def test_items_sent_nowhere_are_left_out(logits):
    top = logits.softmax(-1).topk(1)
    weights = top.values.masked_fill(top.indices == 3, 0.0)
    assert weighed_as(logits, top.indices, weights) == Weighing("softmax", False, pytest.approx(1.0))


@pytest.mark.parametrize("rule", ["best", "two best"])
def test_a_choice_confined_to_groups_stays_in_them(rule, logits):
    scores = confined(logits, "sigmoid", 4, 2, rule)
    groups = (scores > -torch.inf).unflatten(-1, (4, 3))
    assert bool((groups.any(-1).sum(-1) == 2).all())
    assert torch.equal(groups.any(-1), groups.all(-1))


def test_the_order_of_choices_does_not_matter(logits):
    chosen = chosen_as(logits, 3)
    assert same_choice(chosen, chosen.flip(-1))
    assert not same_choice(chosen, chosen_as(-logits, 3))
