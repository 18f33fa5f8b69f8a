"""How many ranks each matrix gets of a budget: where a number more is worth most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.errors import OptionError

__all__ = ["MatrixSpectrum", "allocate_ranks", "whole_rank"]


@dataclass(frozen=True, eq=False)
class MatrixSpectrum:
    """One matrix [m, n] that asks for ranks.

    Attributes:
        m, n: rows and columns.
        energy: [min(m, n)] descending, what each rank more keeps of it; see `coterie.ops.lowrank.spectrum`.
        importance: what its energy counts beside that of others.
        beside: numbers that are stored beside the factors whatever the rank: what is kept of S.
    """

    m: int
    n: int
    energy: Tensor
    importance: float = 1.0
    beside: int = 0

    def cost(self, rank: int) -> int:
        """Numbers stored with ``rank``; all of the matrix where that is no more."""
        return min(rank * (self.m + self.n) + self.beside, self.m * self.n)


def whole_rank(m: int, n: int, beside: int = 0) -> int:
    """The least rank at which factors are no smaller than the matrix, which then stays whole: m n / (m + n) about."""
    return max(1, -(-(m * n - beside) // (m + n)))


def allocate_ranks(matrices: Sequence[MatrixSpectrum], budget: int, multiple: int = 1) -> list[int]:
    """The rank of each matrix, so that all together have at most ``budget`` numbers and keep most of their energy.

    Singular values fall, so taking the rank with the largest energy per number again and again is the best there is,
    but for the last step that no longer fits. A matrix whose factors would be no smaller than itself stays whole, and
    its rank is `whole_rank` then. Deterministic: ties fall to the earlier matrix.

    Args:
        matrices: in a fixed order.
        budget: numbers.
        multiple: ranks are multiples of this where the matrix allows it.

    Raises:
        OptionError: the budget is below one step of rank everywhere.
    """
    least = [min(multiple, _limit(one)) for one in matrices]
    spent = sum(one.cost(rank) for one, rank in zip(matrices, least, strict=True))
    if spent > budget:
        raise OptionError(
            f"{budget} numbers are too few for {len(matrices)} matrices: with a rank of {multiple} each they take "
            f"{spent}."
        )
    ranks = _greedy(matrices, least, budget - spent, multiple)
    return _made_whole(matrices, ranks, budget)


def _limit(one: MatrixSpectrum) -> int:
    """The rank beyond which the matrix is stored whole."""
    return min(whole_rank(one.m, one.n, one.beside), one.m, one.n)


def _greedy(matrices: Sequence[MatrixSpectrum], least: Sequence[int], left: int, multiple: int) -> list[int]:
    worth, cost, owner = [], [], []
    for number, (one, first) in enumerate(zip(matrices, least, strict=True)):
        steps = one.energy[first : _limit(one) - 1].double() * one.importance
        steps = steps[: len(steps) // multiple * multiple].view(-1, multiple).sum(1)
        price = multiple * (one.m + one.n)
        worth.append(steps / price)
        cost.append(torch.full((len(steps),), price))
        owner.append(torch.full((len(steps),), number))
    order = torch.cat(worth).argsort(descending=True, stable=True)
    prices, owners = torch.cat(cost)[order], torch.cat(owner)[order]
    taken = owners[prices.cumsum(0) <= left]
    counts = torch.bincount(taken, minlength=len(matrices)).tolist()
    return [first + multiple * count for first, count in zip(least, counts, strict=True)]


def _made_whole(matrices: Sequence[MatrixSpectrum], ranks: list[int], budget: int) -> list[int]:
    """What is left of the budget goes to matrices that it makes whole, the best of them first."""
    left = budget - sum(one.cost(rank) for one, rank in zip(matrices, ranks, strict=True))

    def gain(number: int) -> float:
        one, rank = matrices[number], ranks[number]
        return float(one.energy[rank:].sum()) * one.importance / max(1, one.m * one.n - one.cost(rank))

    for number in sorted(range(len(matrices)), key=gain, reverse=True):
        one = matrices[number]
        price = one.m * one.n - one.cost(ranks[number])
        if 0 < price <= left:
            left -= price
            ranks[number] = _limit(one)
    return ranks
