"""A mixture of experts in the place of a dense feed-forward, for families that have no mixture of their own.

It looks like a block of the families that have one: a gate that returns logits, weights and indices, and experts behind
what transformers asks of an experts module. So everything that serves, traces or edits those serves this.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from coterie.errors import CheckpointError
from coterie.experts import FFNShape
from coterie.experts.ffn import draw_weights
from coterie.experts.shape import ACTIVATIONS
from coterie.models.stored_mixture import StoredMixture

__all__ = ["DenseMixture", "insert_mixtures"]


class MixtureGate(nn.Module):
    """The softmax over the largest K of ``weight [E, D] x``: weights of an item sum to one. All alike at first."""

    def __init__(self, width: int, experts: int, top_k: int) -> None:
        super().__init__()
        self.top_k, self.num_experts = top_k, experts
        self.weight = nn.Parameter(torch.zeros(experts, width))

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, D] -> logits [T, E], weights [T, K] float32, indices [T, K]."""
        logits = F.linear(hidden_states, self.weight.to(hidden_states.dtype))
        weights, indices = logits.float().softmax(-1).topk(self.top_k, dim=-1)
        return logits, weights / weights.sum(-1, keepdim=True), indices


class MixtureExperts(nn.Module):
    """Experts as transformers stacks them, computed one after another: a reference, which ours take the place of."""

    has_post_expert_norm = is_transposed = False
    is_concatenated = True

    def __init__(self, shape: FFNShape, experts: int) -> None:
        super().__init__()
        self.num_experts, self.activation = experts, shape.activation
        self.has_gate, self.has_bias = shape.gated, shape.bias
        self._is_expert_parallel = False
        self._is_hf_initialized = True  # a family's own initialisation knows nothing of it
        for name, weight in draw_weights(shape, experts).items():
            self.register_parameter(name, nn.Parameter(weight))

    def act_fn(self, x: Tensor) -> Tensor:
        """The activation, by the name that transformers' experts have it."""
        return ACTIVATIONS[self.activation](x)

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate.contiguous()) * up  # on strides some activations have other last bits

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[T, D], indices and weights [T, K], E for none -> [T, D]."""
        out = torch.zeros_like(hidden_states)
        up = "gate_up_proj" if self.has_gate else "up_proj"
        for expert in range(self.num_experts):
            item, rank = (top_k_index == expert).nonzero(as_tuple=True)
            inside = F.linear(hidden_states[item], *self._matrix(up, expert))
            inside = self._apply_gate(inside) if self.has_gate else self.act_fn(inside)
            rows = F.linear(inside, *self._matrix("down_proj", expert)) * top_k_weights[item, rank, None]
            out = out.index_add(0, item, rows.to(out.dtype))
        return out

    def _matrix(self, name: str, expert: int) -> tuple[Tensor, Tensor | None]:
        return getattr(self, name)[expert], getattr(self, f"{name}_bias")[expert] if self.has_bias else None


class SharedExpert(nn.Module):
    """A feed-forward that every item passes."""

    def __init__(self, shape: FFNShape) -> None:
        super().__init__()
        self.shape = shape
        if shape.gated:
            self.gate_proj = nn.Linear(shape.width, shape.inner, bias=shape.bias)
        self.up_proj = nn.Linear(shape.width, shape.inner, bias=shape.bias)
        self.down_proj = nn.Linear(shape.inner, shape.width, bias=shape.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        gate = self.gate_proj(x) if self.shape.gated else None
        out: Tensor = self.down_proj(self.shape.hidden(self.up_proj(x), gate))
        return out


class DenseMixture(nn.Module):
    """``shared(x) + sum over the chosen of w_e expert_e(x)``, of any shape [..., D]."""

    def __init__(self, stored: StoredMixture) -> None:
        super().__init__()
        self.gate = MixtureGate(stored.width, stored.experts, stored.top_k)
        self.experts = MixtureExperts(stored.shape(), stored.experts)
        self.shared_expert = SharedExpert(stored.shape(stored.shared)) if stored.shared else None

    def forward(self, hidden_states: Tensor) -> Tensor:
        x = hidden_states.reshape(-1, hidden_states.shape[-1])
        _, weights, indices = self.gate(x)
        y = self.experts(x, indices, weights)
        if self.shared_expert is not None:
            y = y + self.shared_expert(x)
        return y.view(hidden_states.shape)


def insert_mixtures(model: Any, stored: StoredMixture, where: str) -> None:
    """Put a mixture into each of ``stored.blocks``, in place, on the device and in the type that are the default now.

    Raises:
        CheckpointError: the model has no such module: it is of another family or depth.
    """
    take_place(model, [(block, DenseMixture(stored)) for block in stored.blocks], stored.empty, where)


def take_place(
    model: Any, blocks: Sequence[tuple[str, nn.Module]], empty: Sequence[str], where: str
) -> None:  # fmt: skip
    """Modules in the place of feed-forwards, and in ``empty`` places modules that hand on what they are given.

    Raises:
        CheckpointError: there is no such place.
    """
    for path, module in [*blocks, *((path, nn.Identity()) for path in empty)]:
        try:
            model.set_submodule(path, module, strict=True)
        except (AttributeError, ValueError) as error:
            raise CheckpointError(
                f"{where} has a mixture in {path}, which its model has not. They are of different models: copy both "
                "again."
            ) from error
