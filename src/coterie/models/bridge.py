"""From transformers' call of an experts module to ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.experts import Experts
from coterie.routing import Routing


class ExpertsBridge(nn.Module):
    """Stands where transformers has an experts module and calls ours.

    transformers hands over a router's padded table; an index of E means no expert.
    """

    def __init__(self, inner: Experts) -> None:
        super().__init__()
        self.inner = inner

    @property
    def num_experts(self) -> int:
        """E."""
        return self.inner.num_experts

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[T, D] with indices and weights [T, K] -> [T, D]."""
        output: Tensor = self.inner(hidden_states, routing_of(top_k_index, top_k_weights, self.num_experts))
        return output


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
