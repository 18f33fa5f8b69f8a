"""Routing by direction: the cosine between an item and each route, in few dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.errors import OptionError
from coterie.routers.base import Score
from coterie.routers.score.products import check_items, wide_linear
from coterie.routing import RouteContext

_EPS = 1e-6  # below this length a vector has no direction, and no gradient that would fit float32


class Cosine(Score):
    """``logits = cos(projector @ x, rows[r]) / temperature`` (XMoE, arXiv 2204.09179, equations 4 and 5).

    In few dimensions and by direction alone, so that items are not pulled towards the rows of their
    experts. Projection, cosine and logits are float32 or wider.

    Args:
        width: D.
        num_routes: R.
        dimension: of the space where they meet; 0 stands for half the routes, as in the paper, and 2 at least.
        temperature: to start from; learned.
        min_temperature: it is cut there, so that logits lie within 1 / ``min_temperature``.

    Raises:
        OptionError: a temperature that is not above zero, or below its minimum.
    """

    def __init__(
        self, width: int, num_routes: int, *, dimension: int = 0, temperature: float = 0.3,
        min_temperature: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__()
        if not 0 < min_temperature <= temperature:
            raise OptionError(f"temperature={temperature} must be at least min_temperature={min_temperature}, above 0.")
        if dimension < 0:
            raise OptionError(f"dimension={dimension} is not allowed: 1 or more, or 0 for half the routes.")
        self.width, self.num_routes = width, num_routes
        self.dimension = dimension or max(2, num_routes // 2)
        self.min_temperature = min_temperature
        self.projector = nn.Parameter(torch.empty(self.dimension, width).uniform_(-1, 1) * width**-0.5)
        self.rows = nn.Parameter(torch.randn(num_routes, self.dimension))
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        check_items(x, self.width)
        item = F.normalize(wide_linear(x, self.projector), dim=1, eps=_EPS)
        row = F.normalize(self.rows.to(item.dtype), dim=1, eps=_EPS)
        return wide_linear(item, row) / self._temperature().to(item.dtype), None

    def _temperature(self) -> Tensor:
        return self.log_temperature.clamp(min=math.log(self.min_temperature)).exp()
