"""Rows of two matrices matched where there are too many of them for the best assignment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["greedy_match"]

_CANDIDATES = 16  # of each row, that the greedy pass looks at
_BLOCK = 1024  # rows whose partners are exchanged among themselves in the best way


def greedy_match(reference: Tensor, target: Tensor, best: Callable[[Tensor], Tensor], *, block: int = _BLOCK) -> Tensor:
    """[F] int64: a row of ``target`` [F, P] for each of ``reference`` [F, P]; the most alike pairs are taken first.

    Then two passes over blocks of ``block`` rows, neighbours first and rows far apart next, in which partners are
    exchanged within the block in the best way; the sum of inner products only grows. Memory is F x 16 and block x F.

    Args:
        best: scores [n, n] -> the columns with the largest sum.
    """
    order = _most_alike_first(reference, target, block)
    for rows in (torch.arange(len(order)), _far_apart(len(order), block)):
        for some in rows.split(block):
            order[some] = order[some][best(reference[some] @ target[order[some]].T)]
    return order


def _most_alike_first(reference: Tensor, target: Tensor, block: int) -> Tensor:
    count, few = len(reference), min(_CANDIDATES, len(reference))
    found = [(some @ target.T).topk(few, dim=1) for some in reference.split(block)]
    scores = torch.cat([each.values for each in found]).flatten()
    columns = torch.cat([each.indices for each in found]).flatten().tolist()
    order, taken = [-1] * count, [False] * count
    for place in scores.argsort(descending=True, stable=True).tolist():
        row, column = place // few, columns[place]
        if order[row] < 0 and not taken[column]:
            order[row], taken[column] = column, True
    left = iter([column for column in range(count) if not taken[column]])
    return torch.tensor([next(left) if column < 0 else column for column in order])


def _far_apart(count: int, block: int) -> Tensor:
    """Every row once, so that a block of them is spread over all."""
    step = -(-count // block)
    return torch.cat([torch.arange(start, count, step) for start in range(step)])
