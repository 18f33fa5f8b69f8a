"""The expert every item meets: a dense feed-forward beside the routed ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.experts.ffn import draw_weights, expert_forward
from coterie.experts.shape import FFNShape

__all__ = ["SharedExpert"]


class SharedExpert(nn.Module):
    """[..., D] -> [..., D], with the weight names of `FFN` without their expert dimension.

    Several shared experts (DeepSeekMoE, Dai et al. 2024, eq. 4) are one of their summed inner width.

    Args:
        shape: of the feed-forward.
        gated_by_item: scale its output by ``sigmoid(gate(x))``, one number per item (Qwen2-MoE).
    """

    def __init__(self, shape: FFNShape, gated_by_item: bool = False) -> None:
        super().__init__()
        self.shape = shape
        for name, weight in draw_weights(shape).items():
            self.register_parameter(name, nn.Parameter(weight))
        self.gate = nn.Linear(shape.width, 1, bias=False) if gated_by_item else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.shape.width)
        weights = {name: getattr(self, name) for name in self.shape.weight_shapes()}
        y = expert_forward(rows, weights, self.shape)
        if self.gate is not None:
            y = torch.sigmoid(self.gate(rows)) * y
        return y.view(x.shape)
