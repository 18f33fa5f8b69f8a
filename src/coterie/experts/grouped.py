"""All experts at once: rows sorted by expert, one multiplication per matrix for every group of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from coterie.experts.shape import FFNShape

__all__ = ["grouped_rows", "has_grouped_mm"]

_ALIGNMENT = 16  # bytes: what torch asks of every stride and address
_CUDA_CAPABILITY = (8, 0)


def grouped_rows(rows: Tensor, counts: Tensor, weights: Mapping[str, Tensor], shape: FFNShape) -> Tensor:
    """[S, D] -> [S, D]: rows sorted by expert, each through its own.

    Args:
        rows: those of expert 0, then those of expert 1...
        counts: [E] int64, how many rows each expert has.
        weights: stacked [E, ...], named as in `FFNShape.weight_shapes`; cast to the dtype of ``rows``.
        shape: of each expert.
    """
    expert = torch.repeat_interleave(counts) if shape.bias or shape.post_norm else counts  # of each row

    def linear(x: Tensor, name: str) -> Tensor:
        y = _matmul(x, weights[name].to(x.dtype), counts, shape.transposed)
        bias = weights.get(f"{name}_bias")
        return y if bias is None else y + bias.to(x.dtype).index_select(0, expert)

    ups = [linear(rows, name) for name in shape.up_names]
    down = linear(shape.hidden(ups[-1], ups[0] if len(ups) == 2 else None), "down_proj")
    return shape.finish(down, weights["post_norm"].index_select(0, expert) if shape.post_norm else None)


def has_grouped_mm(x: Tensor, matrices: Tensor) -> bool:
    """Whether `torch.nn.functional.grouped_mm` takes ``x [S, I]`` and ``matrices [E, I, O]`` (any layout of the two).

    It wants float32, bfloat16 or float16, a processor or a CUDA device of capability 8.0, and strides
    and addresses that are multiples of 16 bytes.
    """
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if x.device.type not in ("cpu", "cuda"):
        return False
    if x.device.type == "cuda" and torch.cuda.get_device_capability(x.device) < _CUDA_CAPABILITY:
        return False
    widths = (x.shape[1], matrices.shape[1], matrices.shape[2])
    aligned = all(width * x.element_size() % _ALIGNMENT == 0 for width in widths)
    return aligned and matrices.data_ptr() % _ALIGNMENT == 0


def _matmul(x: Tensor, stack: Tensor, counts: Tensor, transposed: bool) -> Tensor:
    """``x [S, I]`` in groups of ``counts [E]`` rows, each with its own of ``stack [E, O, I]`` or [E, I, O]: [S, O]."""
    matrices = stack if transposed else stack.transpose(1, 2)
    if not has_grouped_mm(x, matrices):
        return _matmul_each(x, matrices, counts)
    if x.device.type == "cpu" and torch.is_grad_enabled() and stack.requires_grad:
        return _GroupedProduct.apply(x, stack, counts, transposed)
    return F.grouped_mm(x, matrices, offs=_ends(counts))


class _GroupedProduct(torch.autograd.Function):
    """`torch.nn.functional.grouped_mm`, whose gradient of the stack is written where it stays.

    torch's own is made of fresh memory for each matrix and copied; on a processor that takes twice the time.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stack: Tensor, counts: Tensor, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, stack, counts)
        ctx.transposed = transposed
        return F.grouped_mm(x, stack if transposed else stack.transpose(1, 2), offs=_ends(counts))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, stack, counts = ctx.saved_tensors
        grad = grad.contiguous()  # that of a sum has no strides, which `grouped_mm` wants
        to_x = to_stack = None
        if ctx.needs_input_grad[0]:
            to_x = F.grouped_mm(grad, stack.transpose(1, 2) if ctx.transposed else stack, offs=_ends(counts))
        if ctx.needs_input_grad[1]:
            a, b = (x, grad) if ctx.transposed else (grad, x)
            in_place = not torch.is_grad_enabled()
            to_stack = (_outer if in_place else _outer_differentiable)(a, b, counts, stack)
        return to_x, to_stack, None, None


def _outer(a: Tensor, b: Tensor, counts: Tensor, like: Tensor) -> Tensor:
    """``a [S, A]`` and ``b [S, B]`` in groups of rows, each ``a.t() @ b``: [E, A, B]."""
    stack = torch.empty_like(like)
    sizes = counts.tolist()
    for expert, (own_a, own_b) in enumerate(zip(a.split(sizes), b.split(sizes), strict=True)):
        torch.mm(own_a.t(), own_b, out=stack[expert])
    return stack


def _outer_differentiable(a: Tensor, b: Tensor, counts: Tensor, like: Tensor) -> Tensor:
    sizes = counts.tolist()
    return torch.stack([own_a.t() @ own_b for own_a, own_b in zip(a.split(sizes), b.split(sizes), strict=True)])


def _ends(counts: Tensor) -> Tensor:
    return torch.cumsum(counts, 0, dtype=torch.int32)


def _matmul_each(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """The fall-back: one multiplication per expert that has rows."""
    groups = zip(x.split(counts.tolist()), matrices.unbind(0), strict=True)
    return torch.cat([rows @ matrix for rows, matrix in groups if rows.shape[0]])
