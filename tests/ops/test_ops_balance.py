"""The routing losses: their equilibrium values, their gradients, their silence about padding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.ops import convert_coefficient, entropy, load_shares, mean_experts, switch_balance, z_loss
from coterie.routing import Routing


def routing_of(logits, chosen, num_experts=None, mask=None):
    """A routing whose weights are softmax of the logits, as `Router` makes it; ids from num_experts on are null."""
    num_routes = logits.shape[1]
    num_experts = num_experts or num_routes
    probs = torch.softmax(logits.float(), -1)
    if mask is not None:
        probs = probs * mask[:, None]
        chosen = chosen.masked_fill(~mask[:, None], num_routes)
    weights = torch.cat([probs, probs.new_zeros(len(probs), 1)], 1).gather(1, chosen)
    experts = chosen.clamp(max=num_experts)
    return Routing.from_padded(weights, experts, num_experts, chosen=chosen, logits=logits, probs=probs)


def random_routing(items=64, routes=8, k=3, num_experts=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, routes, generator=generator).requires_grad_()
    return logits, routing_of(logits, logits.topk(k).indices, num_experts)


def balanced(routes=8, k=2):
    """Every route equally probable, every route chosen equally often."""
    chosen = torch.stack([(torch.arange(routes) + shift) % routes for shift in range(k)], 1)
    return routing_of(torch.zeros(routes, routes), chosen)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_perfect_balance_is_one_or_the_mean_number_of_choices(k):
    assert float(switch_balance(balanced(k=k))) == pytest.approx(1)
    assert float(switch_balance(balanced(k=k), norm="tokens")) == pytest.approx(k)


def test_one_expert_for_all_gives_the_number_of_experts():
    logits = torch.full((10, 8), -1e4)
    logits[:, 3] = 1e4
    everything = routing_of(logits, torch.full((10, 1), 3))
    assert float(switch_balance(everything)) == pytest.approx(8)
    assert float(switch_balance(everything, norm="tokens")) == pytest.approx(8)


def test_it_is_the_loss_of_transformers_over_k():
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits, routing = random_routing(k=2)
    theirs = load_balancing_loss_func((logits.detach(),), 8, 2)
    routing = routing.detach()
    assert float(switch_balance(routing)) == pytest.approx(float(theirs) / 2, rel=1e-6)
    assert 0.01 * float(theirs) == pytest.approx(convert_coefficient(0.01, k=2) * float(switch_balance(routing)))


def test_sigmoid_scores_have_the_same_equilibrium():
    even = balanced()
    scores = torch.full((8, 8), 0.9)
    again = Routing.from_padded(torch.ones(8, 2), even.chosen, 8, chosen=even.chosen, logits=scores, probs=scores)
    assert float(switch_balance(again)) == pytest.approx(1)
    assert float(entropy(again)) == pytest.approx(math.log(8))


@pytest.mark.parametrize("routes", [2, 7, 16])
def test_the_entropy_of_the_undecided_is_the_logarithm_and_of_the_certain_nothing(routes):
    assert float(entropy(routing_of(torch.zeros(5, routes), torch.zeros(5, 1).long()))) == pytest.approx(
        math.log(routes)
    )
    certain = torch.zeros(5, routes)
    certain[:, 1] = 1e4
    assert float(entropy(routing_of(certain, torch.ones(5, 1).long()))) == 0


def test_the_z_loss_is_the_squared_log_sum_exp():
    logits, routing = (value.detach() for value in random_routing())
    assert float(z_loss(routing)) == pytest.approx(float(logits.logsumexp(1).square().mean()), rel=1e-6)


def test_the_entropy_reaches_those_that_were_not_chosen():
    logits, routing = random_routing(k=1)
    (gradient,) = torch.autograd.grad(entropy(routing), logits)
    unchosen = torch.ones_like(gradient, dtype=torch.bool).scatter(1, routing.chosen, False)
    assert bool((gradient[unchosen] != 0).all())


def test_gradients_stay_finite_at_large_logits():
    logits = (torch.randn(20, 8) * 1e4).requires_grad_()
    routing = routing_of(logits, logits.topk(2).indices)
    loss = switch_balance(routing) + entropy(routing) + 1e-9 * z_loss(routing)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(gradient.isfinite().all())


def losses(routing, mask=None, **nulls):
    return torch.stack(
        [
            switch_balance(routing, mask, **nulls), switch_balance(routing, mask, norm="tokens", **nulls),
            entropy(routing, mask), z_loss(routing, mask), mean_experts(routing, mask),
        ]
    )  # fmt: skip


@given(st.integers(0, 20), st.integers(0, 1000))
def test_padding_changes_nothing(pads, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(12 + pads, 8, generator=generator)
    keep = torch.zeros(12 + pads, dtype=torch.bool)
    keep[torch.randperm(12 + pads, generator=generator)[:12]] = True
    chosen = logits.topk(3).indices
    alone = routing_of(logits[keep], chosen[keep], num_experts=5)
    told, untold = routing_of(logits, chosen, 5, mask=keep), routing_of(logits, chosen, 5)
    expected = losses(alone, num_nulls=3)
    torch.testing.assert_close(losses(untold, keep, num_nulls=3), expected)
    torch.testing.assert_close(losses(told, num_nulls=3), expected)  # the router itself was told
    torch.testing.assert_close(load_shares(told), load_shares(alone))


def test_a_batch_of_padding_alone_costs_nothing_and_moves_nothing():
    logits, routing = random_routing()
    total = losses(routing, torch.zeros(64, dtype=torch.bool)).sum()
    total.backward()
    assert float(total.detach()) == 0
    assert bool((logits.grad == 0).all())


# ---- nulls


def test_averaged_nulls_do_not_care_which_null_it_was():
    logits, routing = random_routing(routes=8, k=3, num_experts=5)
    chosen = routing.chosen.clone()
    for row in chosen:  # another null in the place of each, a different one per item
        nulls = [place for place, route in enumerate(row) if route >= 5]
        row[nulls] = torch.randperm(3)[: len(nulls)] + 5
    permuted = routing_of(logits, chosen, 5)
    assert not torch.equal(routing.chosen, chosen)
    both = (routing.detach(), permuted.detach())
    averaged = [float(switch_balance(each, num_nulls=3)) for each in both]
    single = [float(switch_balance(each, num_nulls=3, nulls="individual")) for each in both]
    assert averaged[0] == pytest.approx(averaged[1], rel=1e-6)
    assert single[0] != pytest.approx(single[1], rel=1e-4)


def test_equal_slots_with_nulls_give_one():
    even = balanced(routes=8, k=2)
    with_nulls = routing_of(even.logits, even.chosen, 5)
    for nulls in ("averaged", "individual"):
        assert float(switch_balance(with_nulls, num_nulls=3, nulls=nulls)) == pytest.approx(1)


def test_only_the_balance_loss_reaches_null_logits():
    """AdaMoE's central fact: softmax over the selected true logits gives nulls no gradient, the balance loss does."""
    logits = torch.randn(64, 8).requires_grad_()
    chosen = logits.topk(3).indices
    shut = torch.where(chosen < 5, logits.gather(1, chosen), torch.tensor(-1e30))
    (through_weights,) = torch.autograd.grad(torch.softmax(shut, 1).square().sum(), logits, retain_graph=True)
    (through_balance,) = torch.autograd.grad(switch_balance(routing_of(logits, chosen, 5), num_nulls=3), logits)
    assert bool((through_weights[:, 5:] == 0).all())
    assert bool((through_balance[:, 5:] != 0).any())


def test_mean_experts_counts_no_nulls():
    routing = routing_of(torch.zeros(2, 4), torch.tensor([[0, 1], [1, 3]]), 2)
    assert float(mean_experts(routing)) == 1.5
    assert float(mean_experts(routing, torch.tensor([False, True]))) == 1
    assert float(mean_experts(routing, torch.tensor([False, False]))) == 0


def test_the_load_is_per_choice_or_per_item():
    routing = routing_of(torch.zeros(2, 4), torch.tensor([[0, 1], [1, 3]]))
    assert load_shares(routing).tolist() == [0.25, 0.5, 0, 0.25]
    assert load_shares(routing, norm="tokens").tolist() == [0.5, 1, 0, 0.5]


# ---- coefficients of others, and what is refused


@pytest.mark.parametrize(
    ("source", "others", "expected"),
    [
        ("transformers", {"k": 4}, 0.04),
        ("transformers", {"k": 4, "num_layers": 8, "layers": "sum"}, 0.005),
        ("switch", {"k": 4}, 0.01),
        ("switch", {"num_layers": 8, "source_layers": "sum"}, 0.08),
        ("switch", {"num_layers": 8, "source_layers": "sum", "layers": "sum"}, 0.01),
        ("fastmoe", {"k": 4}, 0.0025),
    ],
)
def test_coefficients_convert(source, others, expected):
    assert convert_coefficient(0.01, source, **others) == pytest.approx(expected)


def test_the_nulls_of_a_router_without_are_refused():
    _, routing = random_routing()
    with pytest.raises(OptionError, match=r"at most 0 .* null"):
        switch_balance(routing, num_nulls=2)


def test_more_routes_than_experts_must_be_explained():
    _, routing = random_routing(num_experts=5)
    with pytest.raises(OptionError, match="num_nulls=3"):
        switch_balance(routing)
    assert float(switch_balance(routing.detach(), nulls="individual")) > 0


def test_words_and_tables_that_are_not_known():
    _, routing = random_routing()
    with pytest.raises(OptionError, match="'slots' or 'tokens'"):
        switch_balance(routing, norm="slot")
    with pytest.raises(OptionError, match="'averaged' or 'individual'"):
        switch_balance(routing, nulls="each")
    with pytest.raises(OptionError, match="'transformers'"):
        convert_coefficient(0.01, "mixtral")
    with pytest.raises(OptionError, match=r"mask must be \[T=64\]"):
        entropy(routing, torch.ones(3, dtype=torch.bool))
    bare = Routing.from_padded(torch.ones(2, 1), torch.zeros(2, 1).long(), 2)
    for loss in (switch_balance, entropy, z_loss, load_shares):
        with pytest.raises(OptionError, match="needs"):
            loss(bare)
