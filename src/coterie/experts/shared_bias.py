"""The bias that stays behind when a dense layer is cut into experts."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SharedBias"]


class SharedBias(nn.Module):
    """[..., D] -> [..., D]: the same row for every item, for the place of a shared expert.

    A dense layer adds its output bias once, however many of its parts are on; no expert can do that.

    Args:
        bias: [D], kept as a parameter.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.to(x.dtype).expand_as(x)
