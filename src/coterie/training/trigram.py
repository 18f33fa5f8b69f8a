"""The yardstick: a trigram model over tokens with interpolated modified Kneser-Ney smoothing.

Chen and Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1999, section 3: counts are
discounted by D1, D2 or D3+, estimated from counts of counts, and what is freed goes to the shorter context, whose
counts are numbers of different left neighbours. The last resort is the uniform distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


class Trigram:
    """Trained when made. Final; immutable.

    Args:
        streams: [N] int64 ids each; n-grams do not reach from one into the next.
        vocabulary: number of token ids, at most 2 million.
    """

    def __init__(self, streams: Sequence[Tensor], vocabulary: int) -> None:
        self._size = vocabulary
        keys = np.concatenate([self._pairs(ids[:-1], ids[1:])[:-1] * vocabulary + ids[2:] for ids in _arrays(streams)])
        trigrams, counts = np.unique(keys, return_counts=True)
        self._high = _Level.of(trigrams, counts, vocabulary)
        bigrams, neighbours = np.unique(trigrams % vocabulary**2, return_counts=True)
        self._middle = _Level.of(bigrams, neighbours, vocabulary)
        words, neighbours = np.unique(bigrams % vocabulary, return_counts=True)
        self._low = _Level.of(words, neighbours, vocabulary)

    def cross_entropy(self, ids: Tensor) -> float:
        """Mean nats per token of [N] ids, each but the first predicted once; the second from one token of context."""
        (tokens,) = _arrays([ids])
        return -float(np.log(self.probabilities(tokens)).mean())

    def probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """[N - 1] float64: of each token but the first, given the two before it."""
        last = self._low.mix(tokens[1:], np.full(len(tokens) - 1, 1 / self._size))
        pairs = self._pairs(tokens[:-1], tokens[1:])
        middle = self._middle.mix(pairs, last)
        high = self._high.mix(pairs[:-1] * self._size + tokens[2:], middle[1:])
        return np.concatenate([middle[:1], high])

    def _pairs(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return first * self._size + second


@dataclass(frozen=True)
class _Level:
    """Counts of one order: keys ascending, a key being its context times the vocabulary plus its last token."""

    size: int
    keys: np.ndarray
    counts: np.ndarray
    discounts: np.ndarray  # [4] by count, 3 standing for more
    contexts: np.ndarray
    totals: np.ndarray  # of the counts of a context
    freed: np.ndarray  # of the discounts of a context

    @classmethod
    def of(cls, keys: np.ndarray, counts: np.ndarray, size: int) -> _Level:
        discounts = _discounts(counts)
        contexts, place = np.unique(keys // size, return_inverse=True)
        totals = np.bincount(place, weights=counts)
        freed = np.bincount(place, weights=discounts[counts.clip(max=3)])
        return cls(size, keys, counts, discounts, contexts, totals, freed)

    def mix(self, keys: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities at this order, given those of the next shorter context."""
        count = _lookup(self.keys, self.counts, keys)
        total = _lookup(self.contexts, self.totals, keys // self.size)
        freed = _lookup(self.contexts, self.freed, keys // self.size)
        own = count - self.discounts[count.astype(np.int64).clip(max=3)]
        seen = total > 0
        return np.where(seen, (own + freed * shorter) / np.where(seen, total, 1), shorter)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """[0, D1, D2, D3+]; where counts of counts are too few to estimate them, three quarters of the usual share."""
    n = [int((counts == number).sum()) for number in range(1, 5)]
    if min(n) == 0:
        return np.array([0.0, 0.5, 0.75, 0.75])
    y = n[0] / (n[0] + 2 * n[1])
    return np.array([0.0, *(k - (k + 1) * y * n[k] / n[k - 1] for k in (1, 2, 3))]).clip(min=0)


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values of the wanted keys, 0 where there is no such key."""
    at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)


def _arrays(streams: Sequence[Tensor]) -> list[np.ndarray]:
    return [ids.numpy().astype(np.int64) for ids in streams]
