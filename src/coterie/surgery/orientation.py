"""Matrices as families lay them on disk, and in the one orientation surgery works in: [out, in], gate and up apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from coterie.experts import FFNShape

__all__ = ["canonical", "canonical_shape", "laid_out"]


def canonical_shape(shape: FFNShape) -> FFNShape:
    """``shape`` of the same expert with separate matrices [out, in]."""
    return replace(shape, fused=False, transposed=False, interleaved=False, post_norm=False)


def canonical(weights: Mapping[str, Tensor], shape: FFNShape) -> dict[str, Tensor]:
    """An expert's weights as ``shape`` has them (or stacks of them) in the canonical orientation; norms left out.

    Views where nothing has to move.
    """
    turned = {
        name: weight.transpose(-1, -2) if shape.transposed and _is_matrix(name) else weight
        for name, weight in weights.items()
        if name != "post_norm"
    }
    apart: dict[str, Tensor] = {}
    for name, weight in turned.items():
        if not name.startswith("gate_up_proj"):
            apart[name] = weight
            continue
        dim = -2 if _is_matrix(name) else -1
        for which, part in enumerate(("gate_proj", "up_proj")):
            apart[name.replace("gate_up_proj", part)] = _half(weight, which, dim, shape.interleaved)
    return apart


def laid_out(weights: Mapping[str, Tensor], shape: FFNShape) -> dict[str, Tensor]:
    """The inverse of `canonical`: weights of the names and sizes that ``shape`` has on disk, contiguous."""
    joined = dict(weights)
    if shape.gated and shape.fused:
        for end, dim in (("", -2), ("_bias", -1)):
            if f"gate_proj{end}" in joined:
                pair = [joined.pop(f"gate_proj{end}"), joined.pop(f"up_proj{end}")]
                joined[f"gate_up_proj{end}"] = _joined(pair, dim, shape.interleaved)
    return {
        name: (joined[name].transpose(-1, -2) if shape.transposed and _is_matrix(name) else joined[name]).contiguous()
        for name in shape.weight_shapes()
        if name != "post_norm"
    }


def _half(weight: Tensor, which: int, dim: int, interleaved: bool) -> Tensor:
    if interleaved:
        index = torch.arange(which, weight.shape[dim], 2)
        return weight.index_select(weight.dim() + dim, index)
    return weight.chunk(2, dim=dim)[which]


def _joined(pair: list[Tensor], dim: int, interleaved: bool) -> Tensor:
    if not interleaved:
        return torch.cat(pair, dim=dim)
    return torch.stack(pair, dim=dim if dim == -1 else -2).flatten(dim - 1, dim)


def _is_matrix(name: str) -> bool:
    return not name.endswith("_bias")
