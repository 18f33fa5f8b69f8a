"""A matrix product in float32 or wider, whatever dtype the model or autocast would have."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.errors import RoutingError
from coterie.routers.weigh.activations import wide

__all__ = ["check_items", "wide", "wide_linear"]


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``: [T, D] by [R, D] to [T, R], float32 or wider. Autocast does not reach it."""
    with torch.autocast(x.device.type, enabled=False):
        x = wide(x)
        return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def check_items(x: Tensor, width: int) -> None:
    """Whether ``x`` is [T, D] with the width a router was built for.

    Raises:
        RoutingError: it is not.
    """
    if x.dim() != 2 or x.shape[1] != width:
        raise RoutingError(f"the router takes items [T, D={width}], found {tuple(x.shape)}.")
