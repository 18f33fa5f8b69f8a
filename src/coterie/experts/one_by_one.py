"""Experts one after the other, each from the items to the items: the way to compute many rows on a processor.

Everything between the items and their sum is made for one expert at a time, so it stays in the cache and no memory
of the size of all assignments is fetched from the machine, which costs a processor more than a tenth of the products.
For the gradient only what the up projections gave is kept; the rest is made again, except products.

Sums are taken in float32 or wider and in ascending expert id, as `coterie.ops.dispatch.combine` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.experts.buckets import HALVES
from coterie.experts.grouped import grouped_rows
from coterie.experts.shape import FFNShape
from coterie.ops.dispatch import Groups, combine, dispatch
from coterie.routing import Routing

__all__ = ["one_by_one", "suits_one_by_one"]

_ROWS = 192  # per expert on average; below, the calls cost more than they save
_BUCKET = 32


def suits_one_by_one(x: Tensor, routing: Routing, shape: FFNShape) -> bool:
    """Whether `one_by_one` serves and pays: a processor, enough rows, no norm after the experts."""
    enough = routing.num_assignments >= _ROWS * routing.num_experts
    return x.device.type == "cpu" and enough and not shape.post_norm


def one_by_one(x: Tensor, routing: Routing, groups: Groups, weights: Mapping[str, Tensor], shape: FFNShape) -> Tensor:
    """[T, D] -> [T, D]: the weighted sum of each item's rows. Twice differentiable.

    Args:
        weights: stacked [E, ...], named as in `FFNShape.weight_shapes`; cast to the dtype of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _OneByOne.apply(x, routing.weight, routing.detach(), groups, shape, tuple(weights), *weights.values())


class _OneByOne(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, routing: Routing, groups: Groups, shape: FFNShape, names: Sequence[str],
        *stacks: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.facts = routing, groups, shape, names
        weights = dict(zip(names, stacks, strict=True))
        wide = torch.promote_types(x.dtype, weight.dtype)
        total = x.new_zeros(routing.num_items, x.shape[1], dtype=wide)
        kept: list[Tensor] = []
        for expert, item, share in _sections(routing, groups, weight):
            rows = x.index_select(0, _filled(item, x.dtype))
            ups = [_linear(rows, weights, name, expert, shape) for name in shape.up_names]
            kept += ups if any(ctx.needs_input_grad) else []
            down = _linear(_hidden(ups, shape), weights, "down_proj", expert, shape)
            total.index_add_(0, item, down[: len(item)] * share[:, None])
        ctx.save_for_backward(x, weight, *stacks, *kept)
        return total.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        routing, groups, shape, names = ctx.facts
        x, weight, *saved = ctx.saved_tensors
        stacks, kept = saved[: len(names)], saved[len(names) :]
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():
                found = _differentiable(grad, x, weight, routing, groups, shape, dict(zip(names, stacks, strict=True)))
            else:
                found = _Gradients(ctx.needs_input_grad, x, weight, shape, dict(zip(names, stacks, strict=True))).of(
                    grad, routing, groups, kept
                )
        to_x, to_weight, *to_stacks = found
        return to_x, to_weight, None, None, None, None, *to_stacks


class _Gradients:
    """One backward pass: gradients of items, shares and stacks, those that are needed."""

    def __init__(
        self, needed: Sequence[bool], x: Tensor, weight: Tensor, shape: FFNShape, weights: dict[str, Tensor]
    ) -> None:
        self.x, self.weight, self.shape, self.weights = x, weight, shape, weights
        wide = torch.promote_types(x.dtype, weight.dtype)
        self.to_x = torch.zeros_like(x, dtype=wide) if needed[0] else None
        self.to_weight = torch.empty_like(weight) if needed[1] else None
        wanted = zip(weights.items(), needed[6:], strict=True)
        self.to_stacks = {name: torch.empty_like(stack) for (name, stack), need in wanted if need}

    def of(self, grad: Tensor, routing: Routing, groups: Groups, kept: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        for expert in (groups.counts == 0).nonzero().flatten().tolist():
            for stack in self.to_stacks.values():
                stack[expert] = 0
        done, each = 0, len(self.shape.up_names)
        for number, (expert, item, share) in enumerate(_sections(routing, groups, self.weight)):
            ups = kept[number * each : (number + 1) * each]
            shares = self._expert(expert, item, share, grad, ups)
            if self.to_weight is not None:
                self.to_weight[done : done + len(item)] = shares
            done += len(item)
        to_x = None if self.to_x is None else self.to_x.to(self.x.dtype)
        to_weight = None if self.to_weight is None else self.to_weight.index_select(0, groups.place)
        return to_x, to_weight, *(self.to_stacks.get(name) for name in self.weights)

    def _expert(self, expert: int, item: Tensor, share: Tensor, grad: Tensor, ups: Sequence[Tensor]) -> Tensor:
        """Adds one expert's gradients to all; returns those of its shares [n]."""
        shape, n, filled = self.shape, len(item), _filled(item, grad.dtype)
        grad = grad.index_select(0, filled)
        share = F.pad(share, (0, len(filled) - n))[:, None]  # rows that fill up count nothing
        with torch.enable_grad():
            ups = [up.detach().requires_grad_() for up in ups]
            hidden = _hidden(ups, shape)
        to_hidden = grad @ self._matrix("down_proj", expert)
        shares = (to_hidden.to(share.dtype) * hidden.detach()).sum(1)
        if (bias := self.weights.get("down_proj_bias")) is not None:
            shares += grad.to(share.dtype) @ bias[expert].to(share.dtype)
        to_ups = torch.autograd.grad(hidden, ups, (to_hidden * share).to(hidden.dtype))
        self._stack("down_proj", expert, (grad * share).to(grad.dtype), hidden.detach())
        if self.to_stacks.keys() - {"down_proj", "down_proj_bias"}:
            rows = self.x.index_select(0, filled)
            for name, to_up in zip(shape.up_names, to_ups, strict=True):
                self._stack(name, expert, to_up, rows)
        if self.to_x is not None:
            for name, to_up in zip(shape.up_names, to_ups, strict=True):
                to_rows = (to_up @ self._matrix(name, expert))[:n]
                self.to_x.index_add_(0, item, to_rows.to(self.to_x.dtype))
        return shares[:n]

    def _stack(self, name: str, expert: int, grad: Tensor, rows: Tensor) -> None:
        """The gradient of a matrix and its bias, from that of its outputs and its inputs."""
        if (stack := self.to_stacks.get(name)) is not None:
            a, b = (rows, grad) if self.shape.transposed else (grad, rows)
            if stack.dtype == grad.dtype:
                torch.mm(a.t(), b, out=stack[expert])
            else:
                stack[expert] = a.t() @ b
        if (bias := self.to_stacks.get(f"{name}_bias")) is not None:
            bias[expert] = grad.sum(0)

    def _matrix(self, name: str, expert: int) -> Tensor:
        """[outputs, inputs], in the dtype of the items."""
        matrix = self.weights[name][expert].to(self.x.dtype)
        return matrix.t() if self.shape.transposed else matrix


def _differentiable(
    grad: Tensor, x: Tensor, weight: Tensor, routing: Routing, groups: Groups, shape: FFNShape,
    weights: dict[str, Tensor],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """The same gradients as functions that have gradients, by the method that keeps all rows."""
    own = Routing(routing.item, routing.expert, weight, routing.num_items, routing.num_experts)
    y = combine(grouped_rows(dispatch(x, own, groups), groups.counts, weights, shape), own, groups)
    inputs = [x, weight, *weights.values()]
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    found = iter(torch.autograd.grad(y, wanted, grad, create_graph=True, allow_unused=True))
    return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)


def _sections(routing: Routing, groups: Groups, weight: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(expert, its items [n], their shares [n]) for the experts that have items, ascending."""
    counts = groups.counts.tolist()
    hit = [(expert, n) for expert, n in enumerate(counts) if n]
    sizes = [n for _, n in hit]
    items = routing.item.index_select(0, groups.order).split(sizes)
    shares = weight.index_select(0, groups.order).split(sizes)
    for (expert, _), item, share in zip(hit, items, shares, strict=True):
        yield expert, item, share


def _filled(item: Tensor, dtype: torch.dtype) -> Tensor:
    """The items [n], and the first again up to the next multiple of a bucket where kernels are made per number of rows.

    See `coterie.experts.buckets`: each of them costs 0.4 ms to make and 0.6 MiB to keep, and there are six per number.
    """
    if dtype not in HALVES or len(item) % _BUCKET == 0:
        return item
    return torch.cat([item, item[:1].expand(-len(item) % _BUCKET)])


def _linear(rows: Tensor, weights: Mapping[str, Tensor], name: str, expert: int, shape: FFNShape) -> Tensor:
    matrix, bias = weights[name][expert].to(rows.dtype), weights.get(f"{name}_bias")
    return F.linear(
        rows, matrix.t() if shape.transposed else matrix, None if bias is None else bias[expert].to(rows.dtype)
    )  # fmt: skip


def _hidden(ups: Sequence[Tensor], shape: FFNShape) -> Tensor:
    return shape.hidden(ups[-1], ups[0] if len(ups) == 2 else None)
