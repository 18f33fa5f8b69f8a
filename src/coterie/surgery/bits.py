"""Which matrix gets how many bits: a small integer program, of what each choice costs and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import gcd

import numpy as np

from coterie.errors import OptionError

__all__ = ["Choices", "choose"]

_LARGEST = 200_000_000  # steps of the exact program that are worth waiting for: some seconds


@dataclass(frozen=True)
class Choices:
    """What `choose` found.

    Attributes:
        picked: the option of each item.
        cost, loss: of all together.
        bound: no choice within the budget has less loss than this.
    """

    picked: tuple[int, ...]
    cost: int
    loss: float
    bound: float

    @property
    def optimal(self) -> bool:
        """Whether nothing better is possible."""
        return self.loss <= self.bound * (1 + 1e-9) + 1e-300


def choose(costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> Choices:
    """One option for every item, so that the costs fit ``budget`` and the losses add up to least.

    The linear program first: its steps along each item's convex hull, best first, are optimal up to the step that no
    longer fits. Where that leaves a doubt and the numbers are small enough, the exact dynamic program decides; else
    the gap to the bound is told.

    Args:
        costs: of each item's options; whole numbers from 0.
        losses: of the same.
        budget: for all costs together.

    Raises:
        OptionError: the cheapest options do not fit; says what would.
    """
    costs = [list(each) for each in costs]
    cheapest = [
        min(range(len(cost)), key=lambda o: (cost[o], loss[o])) for cost, loss in zip(costs, losses, strict=True)
    ]
    least = sum(cost[o] for cost, o in zip(costs, cheapest, strict=True))
    if least > budget:
        raise OptionError(f"The least that is possible is {least}, above the budget of {budget}.")
    greedy = _relaxed(costs, losses, cheapest, budget - least)
    if greedy.optimal:
        return greedy
    unit = reduce(gcd, [c - cost[o] for cost, o in zip(costs, cheapest, strict=True) for c in cost], 0) or 1
    width = (budget - least) // unit
    if width * sum(map(len, costs)) > _LARGEST:
        return greedy
    exact = _exact(costs, losses, cheapest, unit, width)
    return exact if exact.loss <= greedy.loss else greedy


def _relaxed(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], cheapest: Sequence[int], left: int
) -> Choices:  # fmt: skip
    """The greedy choice, and the bound of the linear program."""
    steps: list[tuple[float, int, int]] = []
    for item, (cost, loss, start) in enumerate(zip(costs, losses, cheapest, strict=True)):
        for before, after in _hull(cost, loss, start):
            steps.append(((loss[before] - loss[after]) / (cost[after] - cost[before]), item, after))
    steps.sort(key=lambda step: (-step[0], step[1]))
    picked = list(cheapest)
    bound: float | None = None
    for density, item, after in steps:
        price = costs[item][after] - costs[item][picked[item]]
        fits = price <= left
        if not fits and bound is None:
            bound = _loss(losses, picked) - density * left
        # beyond the first step that did not fit, one may be skipped, but none be taken from the middle of a hull
        if fits and _next(costs, losses, cheapest, item, picked[item]) == after:
            picked[item], left = after, left - price
    total = _loss(losses, picked)
    return Choices(tuple(picked), _cost(costs, picked), total, total if bound is None else max(0.0, bound))


def _hull(cost: Sequence[int], loss: Sequence[float], start: int) -> list[tuple[int, int]]:
    """Steps (from, to) along the lower convex hull of one item's options, from the cheapest on."""
    steps: list[tuple[int, int]] = []
    at = start
    while True:
        better = [o for o in range(len(cost)) if cost[o] > cost[at] and loss[o] < loss[at]]
        if not better:
            return steps
        best = max(better, key=lambda o: ((loss[at] - loss[o]) / (cost[o] - cost[at]), cost[o]))
        steps.append((at, best))
        at = best


def _next(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], cheapest: Sequence[int], item: int, at: int
) -> int | None:  # fmt: skip
    return dict(_hull(costs[item], losses[item], cheapest[item])).get(at)


def _exact(
    costs: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], cheapest: Sequence[int], unit: int, width: int
) -> Choices:  # fmt: skip
    """The best of all, by the least loss of the first items for every budget."""
    best = np.zeros(width + 1)
    taken: list[np.ndarray] = []
    for cost, loss, start in zip(costs, losses, cheapest, strict=True):
        found, which = np.full(width + 1, np.inf), np.zeros(width + 1, dtype=np.uint8)
        for option, (price, lost) in enumerate(zip(cost, loss, strict=True)):
            shift = (price - cost[start]) // unit
            if shift > width:
                continue
            tried = np.full(width + 1, np.inf)
            tried[shift:] = best[: width + 1 - shift] + lost
            less = tried < found
            found[less], which[less] = tried[less], option
        best = found
        taken.append(which)
    at, picked = width, []
    for cost, start, which in zip(reversed(costs), reversed(cheapest), reversed(taken), strict=True):
        option = int(which[at])
        picked.append(option)
        at -= (cost[option] - cost[start]) // unit
    picked.reverse()
    total = _loss(losses, picked)
    return Choices(tuple(picked), _cost(costs, picked), total, total)


def _loss(losses: Sequence[Sequence[float]], picked: Sequence[int]) -> float:
    return float(sum(loss[o] for loss, o in zip(losses, picked, strict=True)))


def _cost(costs: Sequence[Sequence[int]], picked: Sequence[int]) -> int:
    return sum(cost[o] for cost, o in zip(costs, picked, strict=True))
