"""Clusters of equal size."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.ops import balanced_assignment, balanced_kmeans, balanced_partition, members


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_every_cluster_gets_as_many_and_no_exchange_would_pay(clusters, each, seed):
    cost = torch.rand(clusters * each, clusters, generator=torch.Generator().manual_seed(seed))
    labels = balanced_assignment(cost)
    assert labels.bincount(minlength=clusters).tolist() == [each] * clusters
    paid = cost.gather(1, labels[:, None])[:, 0]
    for i in range(len(cost)):
        for j in range(i):
            assert cost[i, labels[j]] + cost[j, labels[i]] >= paid[i] + paid[j] - 1e-6


def test_little_is_lost_against_the_best_of_all_assignments():
    found, best = 0.0, 0.0
    for seed in range(30):
        cost = torch.rand(6, 3, generator=torch.Generator().manual_seed(seed))
        found += float(cost.gather(1, balanced_assignment(cost)[:, None]).sum())
        every = set(permutations([0, 0, 1, 1, 2, 2]))
        best += min(float(cost.gather(1, torch.tensor(order)[:, None]).sum()) for order in every)
    assert best <= found <= 1.05 * best


def test_equal_costs_go_in_order():
    assert balanced_assignment(torch.zeros(6, 3)).tolist() == [0, 0, 1, 1, 2, 2]


def test_what_cannot_be_balanced_is_refused_with_what_could():
    with pytest.raises(OptionError, match=r"10 channels do not fall into 4 equal experts\. Try 5"):
        balanced_assignment(torch.zeros(10, 4))
    with pytest.raises(OptionError, match="finite"):
        balanced_assignment(torch.full((4, 2), torch.nan))


def test_kmeans_finds_planted_clusters_of_equal_size():
    kinds = torch.arange(80) % 4
    rows = torch.eye(4)[kinds] * 5 + torch.randn(80, 4)
    labels, centres = balanced_kmeans(rows, 4)
    assert labels.bincount().tolist() == [20] * 4
    purity = sum(int(kinds[labels == cluster].bincount().max()) for cluster in range(4)) / 80
    assert purity > 0.95
    for cluster in range(4):
        assert torch.allclose(centres[cluster], rows[labels == cluster].mean(0), atol=1e-5)
    again, _ = balanced_kmeans(rows, 4)
    assert torch.equal(labels, again)


def test_kmeans_of_equal_rows_is_still_balanced():
    labels, _ = balanced_kmeans(torch.ones(12, 3), 3)
    assert labels.bincount().tolist() == [4, 4, 4]


def test_a_graph_is_cut_between_its_communities():
    kinds = torch.arange(60) % 3
    together = (kinds[:, None] == kinds).float() * torch.rand(60, 60) + 0.1 * torch.rand(60, 60)
    together = together + together.T
    labels = balanced_partition(lambda columns: together @ columns, 60, 3)
    assert all(len(kinds[row].unique()) == 1 for row in members(labels, 3))


def test_members_are_in_order():
    assert members(torch.tensor([1, 0, 1, 0]), 2).tolist() == [[1, 3], [0, 2]]
