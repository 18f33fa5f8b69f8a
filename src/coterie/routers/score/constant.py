"""No opinion: every route is as good as any other."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.routers.base import Score
from coterie.routing import RouteContext


class ConstantScore(Score):
    """Logit 0 for every route. Nothing is learned; a selection that draws makes of it a router without a router.

    Args:
        num_routes: R.

    Raises:
        OptionError: there is no route.
    """

    def __init__(self, num_routes: int) -> None:
        super().__init__()
        if num_routes < 1:
            raise OptionError(f"num_routes={num_routes} is not allowed: give 1 or more.")
        self.num_routes = num_routes

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        return torch.zeros(x.shape[0], self.num_routes, device=x.device), None
