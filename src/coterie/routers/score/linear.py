"""The usual router: one matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.errors import RoutingError
from coterie.routers.base import Score
from coterie.routing import RouteContext


class LinearScore(Score):
    """``logits = x @ weight.T + bias``.

    Args:
        width: D.
        num_routes: R.
        bias: learn a bias per route; it belongs to the logits (gpt-oss). A correction that moves the
            selection alone belongs to the select part.
        dtype: multiply in this dtype, as DeepSeek-V3 does in float32, under autocast too; default: the dtype of
            ``x``, or what autocast makes of it.
        init_std: of the normal distribution the matrix starts from.
    """

    def __init__(
        self,
        width: int,
        num_routes: int,
        *,
        bias: bool = False,
        dtype: torch.dtype | None = None,
        init_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.width, self.num_routes, self.dtype = width, num_routes, dtype
        self.weight = nn.Parameter(torch.empty(num_routes, width))
        self.bias = nn.Parameter(torch.zeros(num_routes)) if bias else None
        nn.init.normal_(self.weight, std=init_std)

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        if x.dim() != 2 or x.shape[1] != self.width:
            raise RoutingError(f"the router takes items [T, D={self.width}], found {tuple(x.shape)}.")
        if self.dtype is None or not torch.is_autocast_enabled(x.device.type):
            return self._product(x), None
        with torch.autocast(x.device.type, enabled=False):
            return self._product(x), None

    def _product(self, x: Tensor) -> Tensor:
        dtype = x.dtype if self.dtype is None else self.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias)
