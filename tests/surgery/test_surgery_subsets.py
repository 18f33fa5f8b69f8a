"""What a router would decide with some experts gone, and the subset of experts that changes a layer least."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.models.hypotheses import Groups
from coterie.surgery.deciding import Decider, router_logits
from coterie.surgery.subsets import OutputSample, best_subset, count_subsets, drop_order

SEEDS = st.integers(0, 2**31)
DECIDERS = [
    Decider(2), Decider(1, renormalised=False), Decider(2, "sigmoid", False, 2.5), Decider(2, "sqrt softplus"),
    Decider(2, "sigmoid", True, 2.0, Groups(3, 2, "two best")), Decider(2, "softmax", False, 1.0, Groups(3, 1, "best")),
]  # fmt: skip


@given(st.sampled_from(DECIDERS), SEEDS, st.booleans())
@settings(max_examples=40, deadline=None)
def test_absent_experts_are_as_if_their_rows_were_deleted(decide, seed, corrected):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(6, 9, generator=generator)
    correction = 0.1 * torch.randn(9, generator=generator) if corrected else None
    there = torch.tensor([False, True, True] * 3)
    kept = there.nonzero()[:, 0]
    chosen, weights = decide(logits, correction, there)
    expected, wanted = decide(logits[:, kept], None if correction is None else correction[kept])
    assert torch.equal(chosen, kept[expected])
    torch.testing.assert_close(weights, wanted)


def test_a_batch_of_subsets_is_decided_at_once():
    decide, logits = DECIDERS[4], torch.randn(5, 9)
    there = torch.ones(2, 9, dtype=torch.bool)
    there[1, [0, 3, 6]] = False
    chosen, weights = decide(logits.expand(2, 5, 9), None, there)
    for number in range(2):
        one, other = decide(logits, None, there[number])
        assert torch.equal(chosen[number], one)
        assert torch.equal(weights[number], other)


def test_what_a_router_needs():
    assert Decider(2).least() == 2
    assert Decider(4, groups=Groups(4, 2, "best")).least() == 8
    assert Decider(2, groups=Groups(4, 2, "best")).least() == 4
    assert Decider(2, groups=Groups(4, 2, "two best")).least() == 8
    assert Decider(2, groups=Groups(4, 2, "best")).blocks == 4


def sample(decide, experts=6, items=12, correction=None):
    outputs, logits = torch.randn(experts, items, 5), torch.randn(items, experts)
    return OutputSample.of(outputs, logits, decide, correction), outputs, logits


def plain_error(outputs, logits, decide, keep, correction=None):
    def output(there):
        chosen, weights = decide(logits.double(), correction, there)
        rows = outputs.double().transpose(0, 1)
        return (torch.take_along_dim(rows, chosen[..., None], 1) * weights[..., None]).sum(1)

    everyone = torch.ones(logits.shape[1], dtype=torch.bool)
    some = torch.zeros_like(everyone)
    some[list(keep)] = True
    whole = output(everyone)
    return float((output(some) - whole).norm() / whole.norm())


@pytest.mark.parametrize("decide", [Decider(2), Decider(1, renormalised=False), Decider(2, "sigmoid", True, 2.5)])
def test_errors_are_those_of_the_outputs(decide):
    found, outputs, logits = sample(decide)
    keeps = list(itertools.combinations(range(6), 3))
    masks = torch.zeros(len(keeps), 6, dtype=torch.bool).scatter_(1, torch.tensor(keeps), True)
    expected = [plain_error(outputs, logits, decide, keep) for keep in keeps]
    assert found.errors(masks).tolist() == pytest.approx(expected, rel=1e-6)
    best = min(range(len(keeps)), key=expected.__getitem__)
    assert best_subset(found, 3) == (keeps[best], pytest.approx(expected[best]))


def test_experts_go_one_by_one_where_there_are_too_many_subsets():
    found, outputs, logits = sample(Decider(2))
    order, errors = drop_order(found, 2)
    assert len(set(order)) == 4
    for number in range(4):
        kept = set(range(6)) - set(order[: number + 1])
        assert errors[number] == pytest.approx(plain_error(outputs, logits, Decider(2), kept), rel=1e-6)
        rivals = [set(range(6)) - set(order[:number]) - {other} for other in set(range(6)) - set(order[:number])]
        assert errors[number] <= min(plain_error(outputs, logits, Decider(2), kept) for kept in rivals) + 1e-9
    kept, error = best_subset(found, 2, limit=1)
    assert kept == tuple(sorted(set(range(6)) - set(order)))
    assert error == errors[-1]
    assert best_subset(found, 2)[1] <= error


@pytest.mark.parametrize("limit", [0, 1000])
def test_groups_stay_equal(limit):
    decide = Decider(1, "sigmoid", groups=Groups(2, 1, "best"))
    found, *_ = sample(decide)
    kept, _ = best_subset(found, 4, limit=limit)
    assert [sum(e // 3 == block for e in kept) for block in range(2)] == [2, 2]
    assert count_subsets(6, 4, 2) == 9


def test_keeping_all_changes_nothing():
    found, *_ = sample(Decider(2))
    assert best_subset(found, 6) == (tuple(range(6)), 0.0)
    assert drop_order(found, 6) == ([], [])
    assert best_subset(found, 6, limit=0) == (tuple(range(6)), 0.0)


def test_the_correction_takes_part():
    correction = torch.tensor([5.0, 0, 0, 0, 0, 5.0])
    found, outputs, logits = sample(Decider(2, "sigmoid"), correction=correction)
    kept, error = best_subset(found, 2)
    assert kept == (0, 5)
    assert error == pytest.approx(0, abs=1e-6)
    assert plain_error(outputs, logits, Decider(2, "sigmoid"), (0, 5), correction) == pytest.approx(0, abs=1e-6)


def test_impossible_counts_are_refused():
    found, *_ = sample(Decider(2))
    with pytest.raises(OptionError, match="Of 6 experts this router can keep 2 to 6, not 1"):
        best_subset(found, 1)
    grouped, *_ = sample(Decider(1, "sigmoid", groups=Groups(3, 1, "best")))
    with pytest.raises(OptionError, match="3 to 6 in steps of 3, not 4"):
        best_subset(grouped, 4)


def test_logits_are_those_of_the_linear_map():
    x, weight, bias = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    torch.testing.assert_close(router_logits(x, {"weight": weight}), x @ weight.T)
    torch.testing.assert_close(
        router_logits(x.bfloat16(), {"weight": weight, "bias": bias}), x.bfloat16().float() @ weight.T + bias
    )
