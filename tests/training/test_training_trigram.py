from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from coterie.training.trigram import Trigram

SIZE = 12


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(SIZE, (4000,), generator=generator) ** 2 // SIZE


@pytest.fixture(scope="module")
def model(ids):
    return Trigram([ids], SIZE)


def discounts_of(counts):
    n = Counter(counts.values())
    y = n[1] / (n[1] + 2 * n[2])
    return [0, *(max(0, k - (k + 1) * y * n[k + 1] / n[k]) for k in (1, 2, 3))]


def interpolated(counts, context, word, shorter):
    """Equation 26 of Chen and Goodman, word by word."""
    discounts = discounts_of(counts) if min(Counter(counts.values())[k] for k in (1, 2, 3, 4)) else [0, 0.5, 0.75, 0.75]
    mine = {key[-1]: count for key, count in counts.items() if key[:-1] == context}
    if not mine:
        return shorter
    freed = sum(discounts[min(count, 3)] for count in mine.values())
    count = mine.get(word, 0)
    return (count - discounts[min(count, 3)] + freed * shorter) / sum(mine.values())


def plainly(tokens, a, b, word):
    high = Counter(zip(tokens, tokens[1:], tokens[2:], strict=False))
    middle = Counter(key[1:] for key in high)
    low = Counter(key[1:] for key in middle)
    below = interpolated(low, (), word, 1 / SIZE)
    return interpolated(high, (a, b), word, interpolated(middle, (b,), word, below))


@pytest.mark.parametrize("seen", [(0, 1, 2), (3, 3, 3), (10, 0, 10), (8, 9, 0), (11, 11, 11), (7, 2, 5)])
def test_it_is_the_equation_of_the_paper(ids, model, seen):
    assert model.probabilities(np.array(seen))[1] == pytest.approx(plainly(ids.tolist(), *seen), rel=1e-12)


@pytest.mark.parametrize("context", [(0, 0), (10, 9), (11, 11)])
def test_probabilities_sum_to_one(model, context):
    rows = [model.probabilities(np.array([*context, word])) for word in range(SIZE)]
    assert sum(row[1] for row in rows) == pytest.approx(1)
    assert sum(model.probabilities(np.array([context[0], word]))[0] for word in range(SIZE)) == pytest.approx(1)


def test_it_predicts_what_repeats_and_knows_what_it_never_saw():
    song = torch.tensor([1, 2, 3, 4, 5] * 200)
    model = Trigram([song], SIZE)
    assert model.cross_entropy(song[:50]) < 0.05
    assert math.isfinite(model.cross_entropy(torch.tensor([9, 0, 7, 6])))


def test_grams_do_not_reach_across_streams():
    apart = Trigram([torch.tensor([1, 2, 3] * 9), torch.tensor([4, 5, 6] * 9)], SIZE)
    joined = Trigram([torch.tensor([1, 2, 3] * 9 + [4, 5, 6] * 9)], SIZE)
    across = np.array([2, 3, 4])
    assert apart.probabilities(across)[1] < joined.probabilities(across)[1]
