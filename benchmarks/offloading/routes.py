"""Which experts every token goes to, the same in all arms: a seeded table instead of the gates' own choice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from offloading.scales import Scale

KINDS = ("uniform", "sticky")
KEEP = 0.5  # chance that a sticky token keeps an expert of the token before it
STICKY_RANGE = (0.3, 0.6)  # outside of it, chance of a short run included, nothing is judged


@dataclass(frozen=True)
class RouteTable:
    """indices [P, L, K] int64 and weights [P, L, K] float32 (each row sums to 1) of P positions in L layers."""

    kind: str
    indices: Tensor
    weights: Tensor

    def kept_share(self) -> float:
        """The mean share of a position's experts that the position before it had too, in the same layer."""
        now, before = self.indices[1:], self.indices[:-1]
        return (now[..., None] == before[..., None, :]).any(-1).float().mean().item()

    def sets(self, prompt: int) -> list[list[set[int]]]:
        """Per forward (the prompt, then token by token) and layer: the distinct experts it needs."""
        spans = [(0, prompt)] + [(p, p + 1) for p in range(prompt, len(self.indices))]
        layers = range(self.indices.shape[1])
        return [[set(self.indices[a:b, layer].flatten().tolist()) for layer in layers] for a, b in spans]


def make_routes(kind: str, scale: Scale, positions: int, seed: int = 0) -> RouteTable:
    """The table of one kind: `uniform` has no locality, `sticky` keeps about half of the previous choice."""
    assert kind in KINDS, kind
    draw = torch.Generator().manual_seed(1000 * seed + KINDS.index(kind))
    shape = (scale.layers, scale.experts)
    rows = [torch.rand(shape, generator=draw).argsort(-1)[:, : scale.top_k]]
    for _ in range(positions - 1):
        score = torch.rand(shape, generator=draw)
        if kind == "sticky":
            kept = torch.rand(rows[-1].shape, generator=draw) < KEEP
            score.scatter_add_(1, rows[-1], -kept.float())  # below every other score: kept for certain
        rows.append(score.argsort(-1)[:, : scale.top_k])
    weights = torch.rand((positions, scale.layers, scale.top_k), generator=draw) + 0.5
    return RouteTable(kind, torch.stack(rows), weights / weights.sum(-1, keepdim=True))


class ForcedRoutes:
    """Replaces the choice of a model's gates by a table; the gates' linear maps are still computed.

    A forward of n tokens takes the next n positions. `rewind` starts again at position 0. Only the block that
    is running is given the table: a predictor that asks the gate of a later layer hears that gate's own choice.
    """

    def __init__(self, model: Any, table: RouteTable) -> None:
        self._table = table
        self._start = self._end = 0
        self._running = -1
        model.register_forward_pre_hook(self._next_forward)
        for layer, decoder in enumerate(model.model.layers):
            gate = decoder.mlp.gate
            decoder.mlp.register_forward_pre_hook(partial(self._enter, layer))
            gate.forward = partial(self._choose, gate, gate.forward, layer)

    def rewind(self) -> None:
        self._start = self._end = 0

    def _next_forward(self, module: nn.Module, args: Any) -> None:
        self._start = self._end

    def _enter(self, layer: int, module: nn.Module, args: Any) -> None:
        self._running = layer

    def _choose(self, gate: Any, own: Any, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if layer != self._running:
            return own(hidden)
        rows = hidden.reshape(-1, hidden.shape[-1])
        self._end = self._start + len(rows)
        logits = functional.linear(rows, gate.weight)
        span = slice(self._start, self._end)
        return logits, self._table.weights[span, layer].to(logits.dtype), self._table.indices[span, layer]
