"""Counts per layer, dominants, groups: targets are met, ties are decided, names of experts do not matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.ops.similarity import cosine_of_rows, random_similarity
from coterie.surgery.dominants import best_scores, coverage_dominants, frequency_dominants
from coterie.surgery.grouping import Grouping, cluster_grouping, nearest_dominant, salient_grouping

SEEDS = st.integers(0, 2**31)


def layers(seed, count, experts):
    generator = torch.Generator().manual_seed(seed)
    usage = [torch.rand(experts, generator=generator).double() for _ in range(count)]
    return usage, [random_similarity(experts, generator) for _ in range(count)], generator


def both(usage, similarity, total, **options):
    yield frequency_dominants(usage, total, **options)
    yield coverage_dominants(usage, similarity, total, **options)


@given(SEEDS, st.integers(1, 4), st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_targets_are_met(seed, count, experts, data):
    least = data.draw(st.integers(1, experts))
    total = data.draw(st.integers(count * least, count * experts))
    usage, similarity, _ = layers(seed, count, experts)
    for found in both(usage, similarity, total, least=least):
        assert sum(map(len, found)) == total
        assert all(len(each) >= least for each in found)
        assert all(list(each) == sorted(set(each)) for each in found)
        assert all(0 <= e < experts for each in found for e in each)
    for found in both(usage, similarity, experts * count):
        assert found == [tuple(range(experts))] * count  # as many as there are: nothing is merged


@given(SEEDS, st.integers(1, 3), st.sampled_from([1, 2, 3]), st.integers(1, 3), st.data())
@settings(max_examples=40, deadline=None)
def test_blocks_of_the_router_stay_equal(seed, count, blocks, size, data):
    usage, similarity, _ = layers(seed, count, blocks * size)
    total = blocks * data.draw(st.integers(count, count * size))
    for found in both(usage, similarity, total, blocks=blocks):
        for each in found:
            held = [sum(e // size == block for e in each) for block in range(blocks)]
            assert len(set(held)) == 1
        assert sum(map(len, found)) == total


@given(SEEDS, st.integers(2, 7), st.data())
@settings(max_examples=60, deadline=None)
def test_names_of_experts_do_not_matter(seed, experts, data):
    usage, similarity, generator = layers(seed, 1, experts)
    assume(usage[0].unique().numel() == experts)
    order = torch.randperm(experts, generator=generator)
    renamed = [usage[0][order]], [similarity[0][order][:, order]]
    total = data.draw(st.integers(1, experts))
    for before, after in zip(both(usage, similarity, total), both(*renamed, total), strict=True):
        assert sorted(order[list(after[0])].tolist()) == list(before[0])
        one, other = nearest_dominant(similarity[0], before[0]), nearest_dominant(renamed[1][0], after[0])
        assert same_groups(one, other, order)


def same_groups(one, other, order):
    return {frozenset(some) for some in one.members} == {
        frozenset(order[list(some)].tolist()) for some in other.members
    }


@given(SEEDS, st.integers(2, 7), st.data())
@settings(max_examples=40, deadline=None)
def test_names_do_not_matter_to_clusters_and_salient_groups(seed, experts, data):
    generator = torch.Generator().manual_seed(seed)
    features, usage = torch.randn(experts, 3, generator=generator), torch.rand(experts, generator=generator)
    similarity, order = random_similarity(experts, generator), torch.randperm(experts, generator=generator)
    count = data.draw(st.integers(1, experts))
    one, other = cluster_grouping(features, usage, count), cluster_grouping(features[order], usage[order], count)
    assert same_groups(one, other, order)
    centres = usage.argsort(descending=True)[:count].tolist()
    moved = [order.tolist().index(one) for one in centres]
    one = salient_grouping(similarity, usage, centres, experts)
    assert same_groups(one, salient_grouping(similarity[order][:, order], usage[order], moved, experts), order)
    assert sorted(one.dominants) == sorted(centres)


@given(SEEDS, st.integers(1, 8), st.data())
@settings(max_examples=60, deadline=None)
def test_every_expert_has_one_group_and_every_group_one_dominant(seed, experts, data):
    _, (similarity,), _ = layers(seed, 1, experts)
    dominants = data.draw(st.sets(st.integers(0, experts - 1), min_size=1))
    capacity = data.draw(st.none() | st.integers(-(-experts // len(dominants)), experts))
    found = nearest_dominant(similarity, dominants, capacity)
    assert sorted(e for some in found.members for e in some) == list(range(experts))
    assert [set(some) & dominants for some in found.members] == [{one} for one in sorted(dominants)]
    assert all(found.members[label].count(e) == 1 for e, label in enumerate(found.labels))
    assert capacity is None or max(map(len, found.members)) <= capacity


def test_the_paper_sets_the_most_used_to_one_and_takes_the_rest_by_share():
    usage = [torch.tensor([6.0, 2, 1, 1]), torch.tensor([30.0, 25, 25, 20])]
    assert frequency_dominants(usage, 4) == [(0,), (0, 1, 2)]  # ties within a layer: the lower expert
    assert frequency_dominants(usage, 4, uniform=True) == [(0, 1), (0, 1)]
    assert frequency_dominants([torch.zeros(3), torch.zeros(3)], 3) == [(0, 1), (0,)]


def test_coverage_finds_the_family_that_frequency_misses():
    """Two copies of one kind are used most; the kind of the last expert would have nobody."""
    usage = torch.tensor([5.0, 4.0, 1.0, 2.0])
    alike = cosine_of_rows(torch.tensor([[1.0, 0], [1, 0.01], [0.01, 1], [0, 1]]))
    assert frequency_dominants([usage], 2) == [(0, 1)]
    assert coverage_dominants([usage], [alike], 2) == [(0, 3)]
    assert nearest_dominant(alike, (0, 3)).members == ((0, 1), (2, 3))


def test_a_dominant_gives_way_to_the_most_used_of_its_cluster():
    usage = torch.tensor([3.0, 4.0, 3.0, 9.0])
    places = torch.tensor([[1.0, 0.2], [1, 0], [1, -0.2], [-1, 0]])
    assert coverage_dominants([usage], [cosine_of_rows(places)], 2) == [(1, 3)]
    quiet = torch.tensor([3.0, 2.9, 3.1, 9.0])  # the middle one covers the three best, and is used least
    assert coverage_dominants([quiet], [cosine_of_rows(places)], 2) == [(2, 3)]


def test_best_scores_take_the_best():
    assert best_scores([torch.tensor([0.1, 3.0, 2.0, 5.0])], 2) == [(1, 3)]
    assert best_scores([torch.tensor([0.1, 3.0, 2.0, 5.0])], 2, blocks=2) == [(1, 3)]
    assert best_scores([torch.tensor([1.0, 3.0, 0.5, 0.4])], 2, blocks=2) == [(1, 2)]


@pytest.mark.parametrize(
    ("total", "options", "words"),
    [
        (9, {}, "9 experts in 2 layers do not fit: 2 to 8 do"),
        (1, {}, "2 to 8 do, with 1 in each layer at least"),
        (3, {"least": 2}, "4 to 8 do, with 2 in each layer"),
        (5, {"uniform": True}, "5 experts do not fall evenly on 2 layers"),
        (5, {"blocks": 2}, "must be a multiple of 2"),
    ],
)
def test_targets_that_do_not_fit_are_refused(total, options, words):
    with pytest.raises(OptionError, match=words):
        frequency_dominants([torch.ones(4), torch.ones(4)], total, **options)


def test_groups_without_room_are_refused():
    with pytest.raises(OptionError, match=r"2 groups of at most 2 have no room for 5 experts\. Allow 3"):
        nearest_dominant(torch.eye(5), (0, 1), 2)
    with pytest.raises(OptionError, match="have no room"):
        salient_grouping(torch.eye(5), torch.ones(5), (0, 1), 2)


def test_salient_groups_are_few_and_large():
    similarity = cosine_of_rows(torch.tensor([[1.0, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1]]))
    found = salient_grouping(similarity, torch.tensor([1.0, 5.0, 1.0, 4.0, 1.0]), (1, 3), 4)
    assert found == Grouping((1, 3), ((0, 1, 2, 4), (3,)))
    assert found.describe() == "1: 0 2 4 · 3"
