"""Experts as products of thin matrices against whole ones: time and error by rank."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from coterie.experts import Factored, Factors, FFNShape, expert_forward
from coterie.ops.lowrank import low_rank

ROWS = (1, 16, 256)
_REPEATS, _COPIES = 15, 8  # copies of an expert that take turns, so that caches do not serve one of them


def measure(width: int, inner: int, ranks: tuple[int, ...], seed: int = 0) -> list[dict[str, Any]]:
    """A record for each rank and number of rows: seconds of both ways, medians of turns, and the outputs' error.

    The weights' singular values fall as 1 / number: what a rank misses is known, and is no claim about any model.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = FFNShape(width, inner, fused=False)
    experts = [
        {name: _falling(*size, generator) for name, size in shape.weight_shapes().items()} for _ in range(_COPIES)
    ]
    found = []
    for rank in ranks:
        kind = Factored(shape, _COPIES, {name: (Factors(rank),) * _COPIES for name in experts[0]}, "F32")
        parts = [_factored(each, rank) for each in experts]
        for rows in ROWS:
            x = torch.randn(rows, width, generator=generator)
            whole = [expert_forward(x, each, shape) for each in experts]
            thin = [kind.forward(x, each) for each in parts]
            off = torch.stack(thin).sub(torch.stack(whole)).norm() / torch.stack(whole).norm()
            ways = {"whole": lambda e, x=x: expert_forward(x, experts[e], shape),
                    "thin": lambda e, x=x, k=kind, p=parts: k.forward(x, p[e])}  # fmt: skip
            numbers = kind.multiplications(0) / sum(weight.numel() for weight in experts[0].values())
            found.append({"rank": rank, "rows": rows, "error": float(off), "numbers": numbers, **_turns(ways)})
    return found


def _turns(ways: dict[str, Callable[[int], Tensor]]) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_REPEATS):
        for name, run in ways.items():
            began = time.perf_counter()
            for copy in range(_COPIES):
                run(copy)
            taken[name].append((time.perf_counter() - began) / _COPIES)
    return {name: median(each) for name, each in taken.items()}


def _factored(weights: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    parts = {}
    for name, weight in weights.items():
        parts[f"{name}_u"], parts[f"{name}_v"] = low_rank(weight, rank)
    return parts


def _falling(m: int, n: int, generator: torch.Generator) -> Tensor:
    small = min(m, n)
    left, right = (torch.linalg.qr(torch.randn(size, small, generator=generator)).Q for size in (m, n))
    return (left / torch.arange(1, small + 1)) @ right.T
