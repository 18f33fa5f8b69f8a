"""Similarities and clusters of experts."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import MissingExtraError, OptionError
from coterie.ops.linkage import average_linkage
from coterie.ops.similarity import (
    centred_gram,
    cosine_of_gram,
    cosine_of_rows,
    logit_similarity,
    random_similarity,
    redundancy,
    weight_similarity,
)


@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_every_similarity_is_one(count, items, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(items, count, generator=generator)
    weights = {
        "up_proj": torch.randn(count, 3, 2, generator=generator),
        "b": torch.randn(count, 3, generator=generator),
    }
    for found in (
        logit_similarity(logits), logit_similarity(logits, centre=True), cosine_of_rows(logits.T),
        weight_similarity(weights), random_similarity(count, generator),
    ):  # fmt: skip
        assert found.shape == (count, count)
        assert torch.equal(found, found.T)
        assert torch.equal(found.diagonal(), torch.ones(count, dtype=torch.float64))
        assert found.abs().max() <= 1


def test_cosines_are_cosines():
    logits = torch.randn(30, 4)
    expected = torch.nn.functional.cosine_similarity(logits.T[:, None], logits.T[None], dim=-1).double()
    torch.testing.assert_close(logit_similarity(logits), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(cosine_of_rows(logits.T), expected, rtol=1e-5, atol=1e-6)
    flat = torch.randn(4, 12)
    stacked = {"a": flat[:, :8].reshape(4, 2, 4), "b": flat[:, 8:]}
    torch.testing.assert_close(weight_similarity(stacked), cosine_of_rows(flat), rtol=1e-5, atol=1e-6)


def test_centring_takes_away_what_a_softmax_does_not_see():
    logits = torch.randn(50, 5)
    shifted = logits + 10 * torch.randn(50, 1)
    expected = cosine_of_rows((logits - logits.mean(1, keepdim=True)).T)
    torch.testing.assert_close(logit_similarity(logits, centre=True), expected)
    torch.testing.assert_close(logit_similarity(shifted, centre=True), expected, rtol=1e-4, atol=1e-4)
    assert (logit_similarity(shifted) - expected).abs().max() > 0.1
    gram = logits.double().T @ logits.double()
    torch.testing.assert_close(cosine_of_gram(centred_gram(gram)), expected)


def test_what_is_zero_is_like_nothing():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    assert cosine_of_rows(rows).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]


def test_a_column_that_every_mean_logit_is_has_no_direction():
    """Centring leaves rounding of it, whose cosines would be anything."""
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 1e3
    logits[:, 3] = logits[:, :3].mean(1)  # then the mean of all four too
    found = logit_similarity(logits, centre=True)
    assert found[3].tolist() == [0, 0, 0, 1]
    assert found[:3, :3].triu(1).abs().max() > 0.1
    same = torch.ones(9, 3)  # all columns alike: nothing is left of any
    assert torch.equal(logit_similarity(same, centre=True), torch.eye(3, dtype=torch.float64))
    gram = logits.T @ logits
    assert torch.equal(cosine_of_gram(centred_gram(gram), 1e-12 * gram.diagonal().mean()), found)


def test_tiny_is_not_zero():
    rows = torch.tensor([[1e-9, 0.0], [1.0, 1.0]])
    assert cosine_of_rows(rows)[0, 1] == pytest.approx(0.5**0.5)


def test_redundancy_counts_experts_that_differ():
    clones = torch.block_diag(*[torch.ones(3, 3)] * 4).double()
    assert redundancy(clones).effective == pytest.approx(4)
    assert redundancy(clones).nearest == 1
    assert redundancy(clones).typical == pytest.approx(2 / 11)
    assert redundancy(torch.eye(5)).effective == pytest.approx(5)
    assert redundancy(torch.eye(5)).nearest == 0
    assert redundancy(torch.ones(1, 1)).effective == 1
    assert math.isclose(redundancy(torch.ones(6, 6)).effective, 1, abs_tol=1e-6)


def test_clusters_join_the_nearest_by_their_mean():
    places = torch.tensor([0.0, 10.0, 0.5, 10.4, 30.0])
    distance = (places[:, None] - places).abs()
    assert average_linkage(distance, 3).tolist() == [0, 1, 0, 1, 2]
    assert average_linkage(distance, 2).tolist() == [0, 0, 0, 0, 1]
    assert average_linkage(distance, 5).tolist() == [0, 1, 2, 3, 4]
    assert average_linkage(torch.zeros(1, 1), 1).tolist() == [0]


@given(st.integers(1, 8), st.data())
@settings(max_examples=40, deadline=None)
def test_clusters_are_as_many_as_asked_even_where_all_are_alike(items, data):
    count = data.draw(st.integers(1, items))
    assert average_linkage(torch.zeros(items, items), count).unique().tolist() == list(range(count))


def test_an_impossible_number_of_clusters_is_refused():
    with pytest.raises(OptionError, match="3 experts make 1 to 3 clusters, not 4"):
        average_linkage(torch.zeros(3, 3), 4)


def test_scipy_is_asked_for_where_clusters_are_made(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.cluster.hierarchy", None)
    with pytest.raises(MissingExtraError, match=r"coterie\[surgery\]"):
        average_linkage(torch.zeros(3, 3), 2)
