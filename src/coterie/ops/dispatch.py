"""Rows to experts and back: who computes what, and the sum of what came out.

`dispatch` copies each item once per assignment, experts map the copies, `combine` adds an item's
rows up. The two are adjoint: the gradient of one is the other, so both directions accumulate in
float32 (or wider) and in ascending expert id, and give the same bits on every device and run.

Both take rows in the order of the assignments, or gathered by expert (`Groups`), which saves the
experts two copies of all rows. Neither makes more than the rows themselves: what lies between is
made for a few items at a time, and stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from coterie.errors import RoutingError
from coterie.routing import Routing

__all__ = ["Groups", "combine", "combine_reference", "dispatch", "group_by_expert"]

_CACHED = 512 * 1024  # numbers at a time that stay in a processor's cache


@dataclass(frozen=True, eq=False)
class Groups:
    """The S assignments of a routing, gathered by expert.

    Attributes:
        order: [S] int64, positions of assignments, ascending by expert, then by item.
        counts: [E] int64, how many assignments each expert has.
    """

    order: Tensor
    counts: Tensor

    @cached_property
    def place(self) -> Tensor:
        """[S] int64: where in ``order`` each assignment stands."""
        return torch.empty_like(self.order).scatter_(
            0, self.order, torch.arange(len(self.order), device=self.order.device)
        )

    def hit(self) -> Iterator[tuple[int, Tensor]]:
        """Yield ``(expert, positions [n])`` for the experts with n > 0, ascending. Waits for the device once."""
        counts = self.counts.tolist()
        hit = [(expert, n) for expert, n in enumerate(counts) if n]
        for (expert, _), positions in zip(hit, self.order.split([n for _, n in hit]), strict=True):
            yield expert, positions


def group_by_expert(routing: Routing) -> Groups:
    """Sort the assignments by expert; those of one expert keep ascending items."""
    return Groups(torch.argsort(routing.expert, stable=True), routing.items_per_expert())


def dispatch(x: Tensor, routing: Routing, groups: Groups | None = None) -> Tensor:
    """``x[routing.item]``: [T, *D] -> [S, *D], in the order of ``groups`` where given.

    The gradient of an item is summed as `combine` does.
    """
    if x.shape[0] != routing.num_items:
        raise RoutingError(f"x must have T={routing.num_items} rows, found {tuple(x.shape)}.")
    if torch.is_grad_enabled() and x.requires_grad:
        return _Dispatch.apply(x, routing, groups)
    return x.index_select(0, _items(routing, groups))


def combine_reference(rows: Tensor, routing: Routing) -> Tensor:
    """[S, *D] -> [T, *D], the definition: for each item, add weight * row in ascending expert id."""
    wide = _accumulation_dtype(rows, routing.weight)
    sums = [torch.zeros(rows.shape[1:], dtype=wide, device=rows.device) for _ in range(routing.num_items)]
    for position, item in enumerate(routing.item.tolist()):
        sums[item] = sums[item] + routing.weight[position] * rows[position].to(wide)
    return (torch.stack(sums) if sums else rows.new_zeros(rows.shape)).to(rows.dtype)


def combine(rows: Tensor, routing: Routing, groups: Groups | None = None) -> Tensor:
    """[S, *D] -> [T, *D] in the dtype of ``rows``: each item's weighted sum of its rows.

    An item's bits depend on its own rows and weights only: neither on the other items, nor on the
    order in which rows were computed. Items without experts are zero. Gradient flows to ``rows`` and
    ``routing.weight``, and through itself (twice differentiable).

    Args:
        rows: in the order of the assignments, or of ``groups`` where given.

    Raises:
        RoutingError: there is not one row per assignment.
    """
    if rows.shape[0] != routing.num_assignments:
        raise RoutingError(f"rows must be [S={routing.num_assignments}, ...], found {tuple(rows.shape)}.")
    if torch.is_grad_enabled() and (rows.requires_grad or routing.weight.requires_grad):
        return _Combine.apply(rows, routing.weight, routing, groups)
    return _sum_per_item(rows, routing.weight, routing, groups)


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, routing: Routing, groups: Groups | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.routing, ctx.groups = routing.detach(), groups
        return _sum_per_item(rows, weight, routing, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        rows, weight = ctx.saved_tensors
        routing, groups = ctx.routing, ctx.groups
        sorted_weight = weight if groups is None else weight.index_select(0, groups.order)
        # the second is the first in pieces, which would cost a derivative of their own their places
        spread = _spread if torch.is_grad_enabled() else _spread_in_pieces
        to_rows, to_weight = spread(grad, rows, sorted_weight, routing, groups, ctx.needs_input_grad)
        if to_weight is not None and groups is not None:
            to_weight = to_weight.index_select(0, groups.place)
        return to_rows, to_weight, None, None


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, routing: Routing, groups: Groups | None) -> Tensor:
        ctx.routing, ctx.groups = routing.detach(), groups
        return x.index_select(0, _items(routing, groups))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        if not torch.is_grad_enabled():
            return _sum_per_item(grad, None, ctx.routing, ctx.groups), None, None
        return combine(grad, _with_unit_weights(ctx.routing, grad.dtype), ctx.groups), None, None


def _items(routing: Routing, groups: Groups | None) -> Tensor:
    """[S]: whose row each is."""
    return routing.item if groups is None else routing.item.index_select(0, groups.order)


def _with_unit_weights(routing: Routing, dtype: torch.dtype) -> Routing:
    wide = torch.promote_types(dtype, torch.float32)
    ones = torch.ones_like(routing.item, dtype=wide)
    return Routing(routing.item, routing.expert, ones, routing.num_items, routing.num_experts)


def _spread(
    grad: Tensor, rows: Tensor, weight: Tensor, routing: Routing, groups: Groups | None, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of rows and weights, both in the order of the rows."""
    wide = _accumulation_dtype(rows, weight)
    each = dispatch(grad, routing, groups).to(wide)
    to_rows = _weighted(each, weight).to(rows.dtype) if needs[0] else None
    to_weight = _inner(each, rows.to(wide)).to(weight.dtype) if needs[1] else None
    return to_rows, to_weight


def _spread_in_pieces(
    grad: Tensor, rows: Tensor, weight: Tensor, routing: Routing, groups: Groups | None, needs: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None]:
    wide, item = _accumulation_dtype(rows, weight), _items(routing, groups)
    to_rows = torch.empty_like(rows) if needs[0] else None
    to_weight = torch.empty_like(weight) if needs[1] else None
    for piece in _pieces(rows, rows.shape[0]):
        each = grad.index_select(0, item[piece]).to(wide)
        if to_weight is not None:
            to_weight[piece] = _inner(each, rows[piece].to(wide))
        if to_rows is not None:
            to_rows[piece] = _weighted(each, weight[piece])
    return to_rows, to_weight


def _weighted(rows: Tensor, weight: Tensor) -> Tensor:
    # Type promotion widens inside the one kernel: no separate cast of the rows.
    return rows * weight.view(*weight.shape, *[1] * (rows.dim() - weight.dim()))


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """[S, *D] twice -> [S]."""
    return (a * b).unsqueeze(-1).flatten(1).sum(1)


def _accumulation_dtype(rows: Tensor, weight: Tensor) -> torch.dtype:
    return torch.promote_types(rows.dtype, weight.dtype)


def _pieces(rows: Tensor, count: int, each: int = 1) -> Iterator[slice]:
    """Stretches of ``count`` things with ``each`` rows, as many as a cache holds; on an accelerator all at once."""
    numbers = max(1, prod(rows.shape[1:]) * each)
    length = max(1, _CACHED // numbers) if rows.device.type == "cpu" else max(1, count)
    return (slice(start, min(start + length, count)) for start in range(0, count, length))


def _sum_per_item(rows: Tensor, weight: Tensor | None, routing: Routing, groups: Groups | None) -> Tensor:
    """[S, *D] -> [T, *D]: an item's k-th row joins in round k, so every item adds in ascending expert id."""
    items, count = routing.num_items, rows.shape[0]
    if items and count and count % items == 0 and _each_has(count // items, routing):
        return _sum_uniform(rows, weight, items, groups)
    wide = torch.promote_types(rows.dtype, torch.float32 if weight is None else weight.dtype)
    sums = rows.new_empty(items, *rows.shape[1:])
    table = _positions(routing)
    for piece in _pieces(rows, items):
        total = rows.new_zeros(piece.stop - piece.start, *rows.shape[1:], dtype=wide)
        for column in table[piece].unbind(1):
            has = (column < count).nonzero().squeeze(1)
            taken = column[has]
            total[has] += _terms(rows, weight, taken, groups, wide)
        sums[piece] = total
    return sums


def _sum_uniform(rows: Tensor, weight: Tensor | None, items: int, groups: Groups | None) -> Tensor:
    """Where every item has the same number of rows."""
    k = rows.shape[0] // items
    wide = torch.promote_types(rows.dtype, torch.float32 if weight is None else weight.dtype)
    table = torch.arange(rows.shape[0], device=rows.device).view(items, k) if groups is not None else None
    pieces = list(_pieces(rows, items, each=1 if groups is not None else k))
    sums = rows.new_empty(items, *rows.shape[1:]) if len(pieces) > 1 else None
    for piece in pieces:
        terms: Iterator[Tensor]
        if table is not None:
            terms = (_terms(rows, weight, column, groups, wide) for column in table[piece].unbind(1))
        else:
            terms = iter(_own_terms(rows, weight, piece, k, wide))
        total = next(terms) + 0  # as the ragged sum starts: -0 becomes 0
        for term in terms:
            total += term
        if sums is None:
            return total.to(rows.dtype)
        sums[piece] = total
    assert sums is not None
    return sums


def _own_terms(rows: Tensor, weight: Tensor | None, piece: slice, k: int, wide: torch.dtype) -> tuple[Tensor, ...]:
    """k times [n, *D]: the first row of each item of the piece, the second..., where rows stand item by item."""
    stretch = slice(piece.start * k, piece.stop * k)
    terms = rows[stretch].to(wide) if weight is None else _weighted(rows[stretch], weight[stretch])
    return terms.reshape(-1, k, *rows.shape[1:]).unbind(1)


def _terms(rows: Tensor, weight: Tensor | None, taken: Tensor, groups: Groups | None, wide: torch.dtype) -> Tensor:
    """[n, *D] wide: weighted rows of the assignments ``taken`` [n]."""
    own = rows.index_select(0, taken if groups is None else groups.place[taken])
    return own.to(wide) if weight is None else _weighted(own, weight[taken])


def _each_has(k: int, routing: Routing) -> bool:
    return routing.num_items == 1 or bool((routing.experts_per_item() == k).all())


def _positions(routing: Routing) -> Tensor:
    """[T, K] int64: where an item's assignments stand, ascending by expert; S where it has fewer than K."""
    counts = routing.experts_per_item()
    most = int(counts.max()) if routing.num_items else 0
    table = routing.item.new_full((routing.num_items, most), routing.num_assignments)
    table[routing.item, routing.rank_in_item()] = torch.arange(routing.num_assignments, device=table.device)
    return table
