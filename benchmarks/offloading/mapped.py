"""The peer to beat: experts as views into the memory-mapped safetensors files, paged in and out by the kernel.

Nothing is copied: one expert is three views and three matrix products. Stacking a layer's experts, as the
stock loader does, would need the whole layer in anonymous memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from coterie.ranges import TensorRange, read_header
from offloading.checkpoint import shard_files
from offloading.host import expert_modules, plain_host


class Matrices(NamedTuple):
    """One expert."""

    gate: Tensor
    up: Tensor
    down: Tensor


class MappedExperts(nn.Module):
    """Takes the place of a stock experts module; ``matrices[e]`` are those of expert e."""

    def __init__(self, matrices: list[Matrices]) -> None:
        super().__init__()
        self._matrices = matrices

    def forward(self, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[T, D]: ascending by expert, summed in float32."""
        total = torch.zeros(hidden.shape, dtype=torch.float32)
        for expert in top_k_index.unique().tolist():
            item, column = torch.where(top_k_index == expert)
            gate, up, down = self._matrices[expert]
            rows = hidden[item]
            inner = functional.silu(functional.linear(rows, gate)) * functional.linear(rows, up)
            weight = top_k_weights[item, column, None].float()
            total.index_add_(0, item, functional.linear(inner, down).float() * weight)
        return total.to(hidden.dtype)


def mapped_model(checkpoint: Path) -> Any:
    """The model whose experts are views into the mapped files."""
    model = plain_host(checkpoint)
    views = _views(checkpoint)
    for layer, stock in enumerate(expert_modules(model)):
        prefix = f"model.layers.{layer}.mlp.experts."
        matrices = [
            Matrices(*(views[f"{prefix}{expert}.{part}_proj.weight"] for part in Matrices._fields))
            for expert in range(stock.num_experts)
        ]
        model.model.layers[layer].mlp.experts = MappedExperts(matrices)
    return model


def _views(checkpoint: Path) -> dict[str, Tensor]:
    """Expert tensor name -> view of its bytes in a private mapping of its file; nothing is read yet."""
    views: dict[str, Tensor] = {}
    for shard in shard_files(checkpoint):
        mapped = torch.from_file(str(shard), shared=False, size=shard.stat().st_size, dtype=torch.uint8)
        views |= {name: _view(mapped, where) for name, where in read_header(shard).items() if ".experts." in name}
    return views


def _view(mapped: Tensor, where: TensorRange) -> Tensor:
    return mapped[where.start : where.end].view(torch.bfloat16).view(where.shape)
