"""Experts computed one at a time, in float32 beside weights that stay in their own type."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from coterie.experts import FFNShape, expert_forward
from coterie.ops.dispatch import dispatch, group_by_expert
from coterie.routing import Routing

__all__ = ["by_channels", "rows_of"]

_NUMBERS = 1 << 19  # of one matrix in float32 at a time: they stay in the processor's cache


def by_channels(x: Tensor, weights: Mapping[str, Tensor], shape: FFNShape) -> Tensor:
    """What `coterie.experts.expert_forward` computes, to rounding: some hidden channels after others, and added up.

    A weight of another type is cast to that of ``x`` [n, D] in pieces, which takes less time than the whole at once.

    Args:
        weights: in the canonical orientation.
        shape: of them; its inner width is that of the weights.
    """
    inner = weights["down_proj"].shape[1]
    step = max(1, _NUMBERS // shape.width)
    if shape.post_norm or step >= inner or weights["down_proj"].dtype == x.dtype:
        return expert_forward(x, weights, replace(shape, inner=inner))
    total: Tensor | None = None
    for start in range(0, inner, step):
        own = {name: _channels(name, weight, start, start + step) for name, weight in weights.items()}
        if start:
            own.pop("down_proj_bias", None)
        part = expert_forward(x, own, replace(shape, inner=own["down_proj"].shape[1]))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def rows_of(
    x: Tensor, routing: Routing, experts: Iterable[tuple[int, Callable[[Tensor], Tensor]]]
) -> Tensor:  # fmt: skip
    """[S, D]: each assignment's row. ``experts`` are (number, function), each asked for once and then forgotten."""
    sent = dispatch(x, routing)
    places = dict(group_by_expert(routing).hit())
    rows = torch.zeros_like(sent)
    for expert, forward in experts:
        if (place := places.get(expert)) is not None:
            rows[place] = forward(sent[place])
    return rows


def _channels(name: str, weight: Tensor, start: int, stop: int) -> Tensor:
    if name.startswith("down_proj"):
        return weight if weight.dim() == 1 else weight[:, start:stop]
    return weight[start:stop]
