"""NAEE: the experts whose layer comes nearest to the whole one on a sample (arXiv 2402.14800).

A layer's output with some experts gone differs from the whole one's by ``sum_e c_e(t) E_e(x_t)``, where ``c`` is the
difference of two rows of routing weights. Its square is ``c' G_t c`` with the inner products ``G_t`` of the experts'
outputs, which are computed once; after that a subset costs next to nothing, and thousands can be tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from math import comb

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.surgery.deciding import Decider

__all__ = ["EXHAUSTIVE", "OutputSample", "best_subset", "count_subsets", "drop_order"]

EXHAUSTIVE = 20_000  # subsets of a layer, up to which all are tried
_AT_ONCE = 1 << 25  # numbers in memory while subsets are tried


@dataclass(frozen=True, eq=False)
class OutputSample:
    """What all experts of a layer make of a sample, as far as subsets need to know it.

    Attributes:
        gram: [n, E, E] float64, inner products of the experts' outputs of each item.
        logits: [n, E] of the router.
        decide: how it chooses.
        correction: [E], or None.
    """

    gram: Tensor
    logits: Tensor
    decide: Decider
    correction: Tensor | None = None

    @classmethod
    def of(cls, outputs: Tensor, logits: Tensor, decide: Decider, correction: Tensor | None = None) -> OutputSample:
        """From ``outputs`` [E, n, D] of every expert for every item, and ``logits`` [n, E]."""
        step = max(1, _AT_ONCE // (outputs.shape[0] * outputs.shape[2]))
        gram = torch.cat([_inner(some.transpose(0, 1).double()) for some in outputs.split(step, dim=1)])
        return cls(gram, logits.double(), decide, correction)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.gram.shape[1]

    def errors(self, there: Tensor) -> Tensor:
        """[B] float64: for subsets ``there`` [B, E] bool, the norm of what changes over that of the whole output."""
        step = max(1, _AT_ONCE // self.logits.numel())
        whole = self._weights(torch.ones(1, self.num_experts, dtype=torch.bool))
        norm = self._square(whole)
        found = [self._square(self._weights(some) - whole) for some in there.split(step)]
        return (torch.cat(found) / norm.clamp(min=torch.finfo(torch.float64).tiny)).sqrt()

    def _weights(self, there: Tensor) -> Tensor:
        """[B, n, E] of every expert, zero where it is not chosen."""
        logits = self.logits.expand(len(there), *self.logits.shape)
        chosen, weights = self.decide(logits, self.correction, there)
        return torch.zeros_like(logits).scatter_(-1, chosen, weights)

    def _square(self, weights: Tensor) -> Tensor:
        """[B]: summed over items, the square of ``sum_e weights_e E_e(x)``."""
        rows = weights.transpose(0, 1)
        return ((rows @ self.gram) * rows).sum((0, 2)).clamp(min=0)


def best_subset(sample: OutputSample, count: int, *, limit: int = EXHAUSTIVE) -> tuple[tuple[int, ...], float]:
    """The ``count`` experts to keep, ascending, and the layer's error with them.

    All subsets are tried where there are at most ``limit``; otherwise experts go one by one, each time the one whose
    loss changes the output least. Groups of the router stay equal.

    Raises:
        OptionError: ``count`` is more than there are, fewer than the router needs, or no multiple of its groups.
    """
    experts, blocks = sample.num_experts, sample.decide.blocks
    least = sample.decide.least()
    if not least <= count <= experts or count % blocks:
        step = f" in steps of {blocks}" if blocks > 1 else ""
        raise OptionError(f"Of {experts} experts this router can keep {least} to {experts}{step}, not {count}.")
    if count_subsets(experts, count, blocks) > limit:
        order, errors = drop_order(sample, count)
        return tuple(sorted(set(range(experts)) - set(order))), errors[-1] if errors else 0.0
    best: tuple[tuple[int, ...], float] = ((), torch.inf)
    every = _subsets(experts, count, blocks)
    while some := list(islice(every, max(1, _AT_ONCE // sample.logits.numel()))):
        errors_of = sample.errors(_masks(some, experts))
        lowest = int(errors_of.argmin())
        if float(errors_of[lowest]) < best[1]:
            best = some[lowest], float(errors_of[lowest])
    return best


def drop_order(sample: OutputSample, count: int) -> tuple[list[int], list[float]]:
    """Experts in the order in which they go until ``count`` are left, and the layer's error after each.

    With groups, one of every group goes before a second one of any.
    """
    experts, blocks = sample.num_experts, sample.decide.blocks
    size = experts // blocks
    there = torch.ones(experts, dtype=torch.bool)
    order: list[int] = []
    errors: list[float] = []
    while len(order) < experts - count:
        touched = {expert // size for expert in order[len(order) - len(order) % blocks :]}
        able = [e for e in range(experts) if there[e] and e // size not in touched]
        masks = there.repeat(len(able), 1)
        masks[torch.arange(len(able)), able] = False
        found = sample.errors(masks)
        lowest = int(found.argmin())
        order.append(able[lowest])
        errors.append(float(found[lowest]))
        there[able[lowest]] = False
    return order, errors


def count_subsets(experts: int, count: int, blocks: int = 1) -> int:
    """How many ways there are to keep ``count`` experts, equally many of each block."""
    return comb(experts // blocks, count // blocks) ** blocks


def _inner(rows: Tensor) -> Tensor:
    return rows @ rows.transpose(1, 2)


def _subsets(experts: int, count: int, blocks: int) -> Iterator[tuple[int, ...]]:
    size = experts // blocks
    each = [list(combinations(range(first, first + size), count // blocks)) for first in range(0, experts, size)]
    for parts in product(*each):
        yield tuple(expert for part in parts for expert in part)


def _masks(subsets: Sequence[tuple[int, ...]], experts: int) -> Tensor:
    masks = torch.zeros(len(subsets), experts, dtype=torch.bool)
    return masks.scatter_(1, torch.tensor(subsets), True)
