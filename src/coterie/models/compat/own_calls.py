"""How families outside transformers' experts interface call their experts, read as rows and a table of choices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Sent(NamedTuple):
    """What an experts module was told.

    Attributes:
        rows: [T, D].
        indices: [T, K] experts of each row; E is no expert.
        weights: [T, K].
        passed: [T, 1] weight with which a row goes to its sum as it is; None: none does.
        copies: rows there are of every item, one item's T / copies apart.
    """

    rows: Tensor
    indices: Tensor
    weights: Tensor
    passed: Tensor | None = None
    copies: int = 1

    def table(self) -> tuple[Tensor, Tensor]:
        """Indices and weights [items, K]: one line per item, whatever number of rows it has."""
        if self.copies == 1:
            return self.indices, self.weights
        indices = self.indices.view(self.copies, -1).t().sort(-1)
        weights = self.weights.view(self.copies, -1).t().gather(-1, indices.indices)
        most = int((indices.values < self.copies).sum(-1).max())
        return indices.values[:, :most], weights[:, :most]


Reader = Callable[..., Sent]
"""Takes the arguments of a call of the experts module."""


def by_table(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Sent:
    """The call of transformers' experts interface: [T, D] (or [B, N, D]) with indices and weights [T, K]."""
    return Sent(hidden_states.reshape(-1, hidden_states.shape[-1]), top_k_index, top_k_weights)


def with_identities(module: Any) -> Reader:
    """LongCat: an index beyond the experts gives the row back as it is."""
    return partial(_with_identities, num_experts=module.num_routed_experts)


def _with_identities(hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor, *, num_experts: int) -> Sent:
    real = top_k_index < num_experts
    passed = top_k_weights.masked_fill(real, 0).sum(-1, keepdim=True)
    return Sent(hidden_states, top_k_index.where(real, num_experts), top_k_weights.masked_fill(~real, 0), passed)


def by_expert(module: Any) -> Reader:
    """Llama 4: every row once for every expert, [E x T, D], scaled by the router; zero where it was not chosen."""
    return partial(_by_expert, num_experts=module.num_experts)


def _by_expert(hidden_states: Tensor, *, num_experts: int) -> Sent:
    expert = torch.arange(num_experts, device=hidden_states.device).repeat_interleave(len(hidden_states) // num_experts)
    # an expert without biases makes zeros of zeros
    chosen = expert.where((hidden_states != 0).any(-1), num_experts)[:, None]
    return Sent(hidden_states, chosen, torch.ones_like(chosen, dtype=hidden_states.dtype), copies=num_experts)


def by_mask(module: Any) -> Reader:
    """Switch: a mask [T, 1, E] with a one at the expert, or none where that had no room left."""
    return partial(_by_mask, num_experts=module.num_experts)


def _by_mask(hidden_states: Tensor, selected_experts: Tensor, routing_weights: Tensor, *, num_experts: int) -> Sent:
    chosen = selected_experts.argmax(-1).where(selected_experts.any(-1), num_experts)
    return Sent(hidden_states, chosen, routing_weights)


def by_weight(module: Any) -> Reader:
    """NLLB-MoE: weights [T, E] of two experts at most, the others zero; outputs are scaled as dropout left them."""
    return partial(_by_weight, scale=1 - module.moe_token_dropout)


def _by_weight(hidden_states: Tensor, router_mask: Tensor, router_probs: Tensor, *, scale: float) -> Sent:
    weights, indices = router_probs.topk(2, dim=-1)
    return Sent(hidden_states, indices.where(weights > 0, router_probs.shape[-1]), weights * scale)
