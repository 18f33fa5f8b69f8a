"""Keyed draws: their plain reference, their distribution, and that neighbouring keys know nothing of each other."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.ops.draw import bits, fold, gumbel, uniform, word_of
from coterie.testing.router_draws import folded, gumbels

INT64 = st.integers(-(2**63), 2**63 - 1)


def chi_square_is_plausible(counts: Tensor) -> bool:
    """Whether counts over equally likely cells pass the chi-square test at 1e-4 (Wilson and Hilferty)."""
    expected = counts.sum().double() / counts.numel()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    free = counts.numel() - 1
    z = ((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
    return abs(z) < 3.9


@settings(derandomize=True, max_examples=200, deadline=None)
@given(INT64, INT64)
def test_fold_in_numbers_and_in_tensors_is_its_definition(key: int, word: int) -> None:
    expected = folded(key, word)
    found = fold(key, word)
    assert found % 2**64 == expected
    tensor = torch.tensor(word)
    before = tensor.clone()
    for mixed in (fold(key, tensor), fold(torch.tensor(key), word), fold(torch.tensor(key), tensor)):
        assert int(mixed) == found
    assert torch.equal(tensor, before)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(INT64, st.integers(1, 70))
def test_gumbel_is_its_definition(key: int, count: int) -> None:
    found = gumbel(key, count)
    torch.testing.assert_close(found, torch.tensor(gumbels(key, count)), rtol=1e-5, atol=1e-5)
    assert torch.equal(found, gumbel(torch.tensor(key), count))
    assert torch.equal(found, gumbel(torch.tensor([0, key]), count)[1])


def test_shapes_and_range() -> None:
    keys = fold(1, torch.arange(40_000).view(200, 200))
    assert isinstance(keys, Tensor)
    values = uniform(keys, 6)
    assert (values.shape, values.dtype) == ((200, 200, 6), torch.float32)
    assert 0 < float(values.min()) < 1e-4
    assert 1 - 1e-4 < float(values.max()) < 1
    assert bits(7, 3).dtype == torch.int32
    assert bool(torch.isfinite(gumbel(keys, 6)).all())


def test_the_global_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = gumbel(3, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(gumbel(3, 5), first)


@pytest.mark.parametrize("stride", [1, 2, 1 << 20, 1 << 32])
@pytest.mark.parametrize("column", [0, 1, 63])
def test_one_number_of_many_keys_is_uniform(stride: int, column: int) -> None:
    values = uniform(fold(0, torch.arange(20_000) * stride), 64)[:, column]
    assert chi_square_is_plausible(torch.histc(values, 50, 0, 1))


@pytest.mark.parametrize("shift", [1, 2, 8, 63])
def test_the_numbers_of_one_key_are_independent(shift: int) -> None:
    values = uniform(11, 40_000)
    cells = (values[:-shift] * 8).long() * 8 + (values[shift:] * 8).long()
    assert chi_square_is_plausible(torch.bincount(cells, minlength=64))


@pytest.mark.parametrize("what", ["position", "sequence", "pass", "seed", "site", "route and position"])
def test_neighbours_are_independent(what: str) -> None:
    words = torch.arange(20_000)
    site = fold(fold(5, word_of("model.layers.0.mlp")), 0)
    pairs: dict[str, tuple[Tensor, Tensor]] = {
        "position": (uniform(fold(site, words), 1), uniform(fold(site, words + 1), 1)),
        "sequence": (uniform(fold(fold(site, words), 3), 1), uniform(fold(fold(site, words + 1), 3), 1)),
        "pass": (uniform(fold(fold(site, 0), words), 1), uniform(fold(fold(site, 1), words), 1)),
        "seed": (uniform(fold(5, words), 1), uniform(fold(6, words), 1)),
        "site": (
            uniform(fold(fold(5, word_of("model.layers.0.mlp")), words), 1),
            uniform(fold(fold(5, word_of("model.layers.1.mlp")), words), 1),
        ),
        "route and position": (uniform(fold(site, words), 2)[:, 1:], uniform(fold(site, words + 1), 2)[:, :1]),
    }
    one, other = (pair[:, 0] for pair in pairs[what])
    cells = (one * 8).long() * 8 + (other * 8).long()
    assert chi_square_is_plausible(torch.bincount(cells, minlength=64))
    assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 4 / math.sqrt(len(words))


def test_both_halves_of_a_key_count() -> None:
    low = torch.arange(1000)
    rows = bits(torch.cat([low, low << 32]), 4)
    assert len(rows.unique(dim=0)) == 1999  # key 0 is in both


def test_gumbel_noise_draws_from_softmax_without_replacement() -> None:
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05])
    noise = gumbel(fold(9, torch.arange(60_000)), 4)
    order = (probs.log() + noise).argsort(dim=1, descending=True)
    first, second = order[:, 0], order[:, 1]
    for route in range(4):
        share = float((first == route).float().mean())
        assert abs(share - float(probs[route])) < 4 * math.sqrt(0.25 / 60_000)
    # given the first, the second is drawn from what is left
    left = second[first == 0]
    share = float((left == 1).float().mean())
    assert abs(share - 0.6) < 4 * math.sqrt(0.24 / len(left))


def test_words_of_texts() -> None:
    assert word_of("a") == word_of("a") != word_of("b")
    assert word_of("") != word_of(" ")
    assert -(2**63) <= word_of("model.layers.0.mlp") < 2**63
