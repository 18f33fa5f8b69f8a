"""Several experts with few rows each, in one call of the kernel per matrix: the bits of one expert after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from coterie.experts.few_rows import few_rows
from coterie.experts.shape import FFNShape

__all__ = ["rows_together"]

_VECTOR = 64  # a row of so many numbers, or a multiple, leaves torch's vector loops no remainder
_GRAIN = 32768  # numbers that torch gives to one thread whole


def rows_together(
    rows: Tensor, hit: Sequence[tuple[int, int]], weights: Mapping[str, Tensor], shape: FFNShape
) -> Tensor:
    """[S, D] -> [S, D]: rows sorted by expert, each through its own. For what `has_few` allows.

    Args:
        rows: those of the first expert hit, then those of the second...
        hit: (expert, how many rows), ascending.
        weights: stacked [E, ...], named as in `FFNShape.weight_shapes`.
        shape: of each expert.
    """
    experts = [expert for expert, _ in hit]
    starts = [0, *accumulate(n for _, n in hit)]

    def linear(x: Tensor, name: str) -> Tensor:
        return few_rows(
            x, weights[name], weights.get(f"{name}_bias"), transposed=shape.transposed, groups=experts, starts=starts
        )  # fmt: skip

    ups = [linear(rows, name) for name in shape.up_names]
    down = linear(_hidden(ups, starts, shape), "down_proj")
    if not shape.post_norm:
        return down
    scales = weights["post_norm"]
    each = zip(experts, pairwise(starts), strict=True)
    return torch.cat([shape.finish(down[start:end], scales[expert]) for expert, (start, end) in each])


def _hidden(ups: Sequence[Tensor], starts: Sequence[int], shape: FFNShape) -> Tensor:
    """In one go only where torch's elementwise kernels treat every row alike: they treat the end of a stretch apart."""
    if shape.inner % _VECTOR == 0 and ups[0].numel() <= _GRAIN:
        return shape.hidden(ups[-1], ups[0] if len(ups) == 2 else None)
    parts = [[up[start:end] for up in ups] for start, end in pairwise(starts)]
    return torch.cat([shape.hidden(part[-1], part[0] if len(part) == 2 else None) for part in parts])
