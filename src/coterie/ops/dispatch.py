"""Rows to experts and back: who computes what, and the sum of what came out.

`dispatch` copies each item once per assignment, experts map the copies, `combine` adds an item's
rows up. The two are adjoint: the gradient of one is the other, so both directions accumulate in
float32 (or wider) and in ascending expert id, and give the same bits on every device and run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RoutingError
from coterie.routing import Routing

__all__ = ["Groups", "combine", "combine_reference", "dispatch", "group_by_expert"]


@dataclass(frozen=True, eq=False)
class Groups:
    """The S assignments of a routing, gathered by expert.

    Attributes:
        order: [S] int64, positions of assignments, ascending by expert, then by item.
        counts: [E] int64, how many assignments each expert has.
    """

    order: Tensor
    counts: Tensor

    def hit(self) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(expert, positions [n])`` for the experts with n > 0, ascending. Waits for the device once."""
        counts = self.counts.tolist()
        hit = [(expert, n) for expert, n in enumerate(counts) if n]
        for (expert, _), positions in zip(hit, self.order.split([n for _, n in hit]), strict=True):
            yield expert, positions


def group_by_expert(routing: Routing) -> Groups:
    """Sort the assignments by expert; those of one expert keep ascending items."""
    return Groups(torch.argsort(routing.expert, stable=True), routing.items_per_expert())


def dispatch(x: Tensor, routing: Routing) -> Tensor:
    """``x[routing.item]``: [T, *D] -> [S, *D]. The gradient of an item is summed as `combine` does."""
    if x.shape[0] != routing.num_items:
        raise RoutingError(f"x must have T={routing.num_items} rows, found {tuple(x.shape)}.")
    if torch.is_grad_enabled() and x.requires_grad:
        return _Dispatch.apply(x, routing)
    return x.index_select(0, routing.item)


def combine_reference(rows: Tensor, routing: Routing) -> Tensor:
    """[S, *D] -> [T, *D], the definition: for each item, add weight * row in ascending expert id."""
    wide = _accumulation_dtype(rows, routing.weight)
    sums = [torch.zeros(rows.shape[1:], dtype=wide, device=rows.device) for _ in range(routing.num_items)]
    for position, item in enumerate(routing.item.tolist()):
        sums[item] = sums[item] + routing.weight[position] * rows[position].to(wide)
    return (torch.stack(sums) if sums else rows.new_zeros(rows.shape)).to(rows.dtype)


def combine(rows: Tensor, routing: Routing) -> Tensor:
    """[S, *D] -> [T, *D] in the dtype of ``rows``: each item's weighted sum of its rows.

    An item's bits depend on its own rows and weights only: neither on the other items, nor on the
    order in which rows were computed. Items without experts are zero. Gradient flows to ``rows`` and
    ``routing.weight``, and through itself (twice differentiable).

    Raises:
        RoutingError: there is not one row per assignment.
    """
    if rows.shape[0] != routing.num_assignments:
        raise RoutingError(f"rows must be [S={routing.num_assignments}, ...], found {tuple(rows.shape)}.")
    if torch.is_grad_enabled() and (rows.requires_grad or routing.weight.requires_grad):
        return _Combine.apply(rows, routing.weight, routing)
    return _sum_per_item(_weighted(rows, routing.weight), routing).to(rows.dtype)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, routing: Routing) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.routing = routing.detach()
        return _sum_per_item(_weighted(rows, weight), routing).to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weight = ctx.saved_tensors
        wide = _accumulation_dtype(rows, weight)
        each = dispatch(grad, ctx.routing).to(wide)
        to_rows = _weighted(each, weight).to(rows.dtype) if ctx.needs_input_grad[0] else None
        to_weight = _inner(each, rows.to(wide)).to(weight.dtype) if ctx.needs_input_grad[1] else None
        return to_rows, to_weight, None


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, routing: Routing) -> Tensor:
        ctx.routing = routing.detach()
        return x.index_select(0, routing.item)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        routing: Routing = ctx.routing
        return combine(grad, _with_unit_weights(routing, grad.dtype)), None


def _with_unit_weights(routing: Routing, dtype: torch.dtype) -> Routing:
    wide = torch.promote_types(dtype, torch.float32)
    ones = torch.ones_like(routing.item, dtype=wide)
    return Routing(routing.item, routing.expert, ones, routing.num_items, routing.num_experts)


def _weighted(rows: Tensor, weight: Tensor) -> Tensor:
    # Type promotion widens inside the one kernel: no separate cast of the rows.
    return rows * weight.view(-1, *[1] * (rows.dim() - 1))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """[S, *D] twice -> [S]."""
    return (a * b).unsqueeze(-1).flatten(1).sum(1)


def _accumulation_dtype(rows: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, weight.dtype)


def _sum_per_item(weighted: Tensor, routing: Routing) -> Tensor:
    """[S, *D] -> [T, *D]: an item's k-th row joins in round k, so every item adds in ascending expert id."""
    items, rows = routing.num_items, routing.num_assignments
    if items and rows and rows % items == 0 and _each_has(rows // items, routing):
        first, *others = weighted.reshape(items, rows // items, *weighted.shape[1:]).unbind(1)
        total = first + 0  # as the ragged sum starts: -0 becomes 0
        for row in others:
            total += row
        return total
    total = weighted.new_zeros(items, *weighted.shape[1:])
    for column in _positions(routing).unbind(1):
        has = (column < rows).nonzero().squeeze(1)
        total[has] += weighted[column[has]]
    return total


def _each_has(k: int, routing: Routing) -> bool:
    return routing.num_items == 1 or bool((routing.experts_per_item() == k).all())


def _positions(routing: Routing) -> Tensor:
    """[T, K] int64: where an item's assignments stand, ascending by expert; S where it has fewer than K."""
    counts = routing.experts_per_item()
    most = int(counts.max()) if routing.num_items else 0
    table = routing.item.new_full((routing.num_items, most), routing.num_assignments)
    table[routing.item, routing.rank_in_item()] = torch.arange(routing.num_assignments, device=table.device)
    return table
