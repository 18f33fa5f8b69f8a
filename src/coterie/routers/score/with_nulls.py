"""Null routes beside those of any score."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from coterie.errors import OptionError
from coterie.routers.base import Score
from coterie.routers.score.products import check_items
from coterie.routing import RouteContext


class WithNulls(Score):
    """The routes of ``inner``, then ``num_nulls`` null routes with rows of their own (AdaMoE, arXiv 2406.13233).

    A null route competes like any other and costs nothing, so that the number of true experts differs
    from item to item while the number of choices does not. With ``TrueOnly`` weights only a balance loss
    (or weight decay) moves the rows: give them no weight decay, since it alone would change the budget.

    ``offset [M]`` is a buffer added to the null logits, zero at first. It pins nulls (`pin`, then
    ``score.offset.mul_(0.99)`` step by step) and can hold a budget (``score.offset.fill_(controller.value)``
    with a `Controller` that has ``rising=False``). It moves selection and probabilities, and no weight of a
    true expert.

    Args:
        inner: the score of the true routes.
        num_nulls: M; 0 leaves the inner score alone.
        width: D, of the rows.
        init_std: of the normal distribution the rows start from.

    Raises:
        OptionError: fewer than 0 nulls.
    """

    offset: Tensor

    def __init__(self, inner: Score, num_nulls: int, width: int, *, init_std: float = 0.02) -> None:
        super().__init__()
        if num_nulls < 0:
            raise OptionError(f"num_nulls={num_nulls} is not allowed: ask for 0 or more.")
        self.inner, self.num_nulls, self.width = inner, num_nulls, width
        self.num_routes = inner.num_routes + num_nulls
        self.null_rows = nn.Parameter(torch.randn(num_nulls, width) * init_std)
        self.register_buffer("offset", torch.zeros(num_nulls))
        self.causal, self.variable_k = inner.causal, inner.variable_k
        self.carries, self.carry_width = inner.carries, inner.carry_width
        self.stochastic, self.scope = inner.stochastic, inner.scope

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        check_items(x, self.width)
        logits, carry = self.inner(x, ctx)
        # in the dtype of the others and in one step, so that a copy of a row ties with it
        with torch.autocast(x.device.type, enabled=False):
            to = logits.dtype
            nulls = F.linear(x.to(to), self.null_rows.to(to), self.offset.to(to))
        return torch.cat([logits, nulls], dim=1), carry

    @torch.no_grad()
    def copy_rows(self, rows: Tensor, bias: Tensor | None = None) -> None:
        """Start the nulls as copies of ``rows [N, D]``, over and over until there are M. Mutates.

        Args:
            bias: [N], that belong to the rows; added to ``offset``.
        """
        turn = torch.arange(self.num_nulls) % len(rows)
        self.null_rows.copy_(rows[turn])
        if bias is not None:
            self.offset.add_(bias[turn])

    @torch.no_grad()
    def pin(self, count: int, offset: float = 1e4) -> None:
        """``offset`` on the first ``count`` nulls and ``-offset`` on the others, whatever was there before. Mutates."""
        self.offset.fill_(-offset)
        self.offset[:count] = offset
