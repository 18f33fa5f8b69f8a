"""All experts at once: rows sorted by expert, one multiplication per matrix for every group of them."""

from __future__ import annotations

from collections.abc import Mapping

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
        matrix = weights[name].to(x.dtype)
        y = _matmul(x, matrix if shape.transposed else matrix.transpose(1, 2), counts)
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


def _matmul(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """``x [S, I]`` in groups of ``counts [E]`` rows, each times its own of ``matrices [E, I, O]``: [S, O]."""
    if not has_grouped_mm(x, matrices):
        return _matmul_each(x, matrices, counts)
    return F.grouped_mm(x, matrices, offs=torch.cumsum(counts, 0, dtype=torch.int32))


def _matmul_each(x: Tensor, matrices: Tensor, counts: Tensor) -> Tensor:
    """The fall-back: one multiplication per expert that has rows."""
    groups = zip(x.split(counts.tolist()), matrices.unbind(0), strict=True)
    return torch.cat([rows @ matrix for rows, matrix in groups if rows.shape[0]])
