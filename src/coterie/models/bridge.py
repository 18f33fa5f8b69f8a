"""From a family's call of its experts module to ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coterie.experts import FFN, Experts, KindExperts
from coterie.models.compat import OwnLayout, Reader, by_table, own_layout
from coterie.routing import Routing


class ExpertsBridge(nn.Module):
    """Stands where transformers has an experts module and calls ours.

    Most families hand over a router's padded table, an index of E meaning no expert; the others call their
    experts as their `OwnLayout` says.

    Args:
        inner: ours.
        original: the module whose place this takes, on any device; None: one that is called with a table.
    """

    def __init__(self, inner: Experts, original: nn.Module | None = None) -> None:
        super().__init__()
        self.inner = inner
        self.own: OwnLayout | None = None if original is None else own_of(original)
        self.reader: Reader = by_table if original is None else reader_of(original)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.inner.num_experts

    @property
    def true_experts(self) -> Experts:
        """Ours without what may be around them, such as an identity beside them."""
        return next((part for part in self.inner.modules() if isinstance(part, FFN | KindExperts)), self.inner)

    def __getattr__(self, name: str) -> Any:
        """Weights by the names that transformers looks for here when it saves."""
        inner = self.__dict__.get("_modules", {}).get("inner")
        if inner is not None and name.startswith(("gate_", "up_", "down_")):
            weights = self.true_experts._parameters
            if name in weights:
                return weights[name]
        return super().__getattr__(name)

    def forward(self, hidden_states: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """[T, D] with whatever else the family gives, usually indices and weights [T, K] -> [T, D]."""
        sent = self.reader(hidden_states, *args, **kwargs)
        output: Tensor = self.inner(sent.rows, routing_of(sent.indices, sent.weights, self.num_experts))
        if sent.passed is not None:
            output = output + (sent.rows * sent.passed).to(output.dtype)
        return output.view(hidden_states.shape)


def own_of(module: nn.Module) -> OwnLayout | None:
    """The own layout of an experts module, or of the one whose place a bridge takes."""
    return module.own if isinstance(module, ExpertsBridge) else own_layout(module)


def reader_of(module: nn.Module) -> Reader:
    """What reads the calls of an experts module or of a bridge."""
    if isinstance(module, ExpertsBridge):
        return module.reader
    own = own_layout(module)
    return by_table if own is None else own.reader(module)


def routing_of(indices: Tensor, weights: Tensor, num_experts: int) -> Routing:
    """`Routing.from_padded` with a shorter way for one item: a decode step takes it once per layer."""
    if indices.shape[0] != 1:
        return Routing.from_padded(weights, indices, num_experts)
    ids, order = indices[0].sort()
    listed = ids.tolist()
    if not listed or listed[-1] >= num_experts or len(set(listed)) < len(listed):
        return Routing.from_padded(weights, indices, num_experts)
    weight = weights[0, order]
    wide = weight if weight.dtype == torch.float64 else weight.float()
    return Routing(torch.zeros_like(ids), ids, wide, 1, num_experts)
