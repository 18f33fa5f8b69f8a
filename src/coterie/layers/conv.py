"""The convolution whose channels depend on the image: who decides, convolutions and their normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts.conv import ConvExperts
from coterie.experts.norm import BatchNormExperts
from coterie.ops.dispatch import combine
from coterie.ops.sections import sections_of
from coterie.routers.base import RouterLike
from coterie.routing import RouteContext, Routing

__all__ = ["RoutedConv", "assignments_as_items", "combined"]


class RoutedConv(nn.Module):
    """Each item through the convolution of its expert, then through that expert's normalisation.

    The weight of the routing multiplies what comes out, once. Where it is exactly 1 nothing is multiplied and only
    its gradient is kept: the sum over channels and pixels of (gradient of the output) * output. Nothing is kept
    between calls but running statistics, in training mode.

    Args:
        router: decides, one item per image [C, H, W]: a `Router` of the layer's own, or a `FromPlan`.
        conv: computes.
        norm: follows, on the rows of the same expert; None for none.

    Raises:
        OptionError: the parts do not fit.
    """

    def __init__(self, router: RouterLike, conv: ConvExperts, norm: BatchNormExperts | None = None) -> None:
        super().__init__()
        experts = [router.num_experts, conv.num_experts, *([] if norm is None else [norm.num_experts])]
        if len(set(experts)) != 1:
            raise OptionError(f"router, conv and norm are over {experts} experts: build all with the same number.")
        if norm is not None and norm.channels != conv.out_channels:
            raise OptionError(f"conv has {conv.out_channels} channels per expert, norm {norm.channels}.")
        self.router, self.conv, self.norm = router, conv, norm

    def forward(self, x: Tensor, ctx: RouteContext | None = None) -> Tensor:
        """[T, I, H, W] -> [T, O, H', W']; zeros for an item without an expert."""
        return self.route_and_run(x, ctx)[0]

    def route_and_run(self, x: Tensor, ctx: RouteContext | None = None) -> tuple[Tensor, Routing]:
        """What `forward` returns, with the routing that led to it."""
        routing = self.router(x, ctx)
        rows = self.conv.rows(x, routing)
        if self.norm is not None:
            rows = self.norm.rows(rows, assignments_as_items(routing))
        return combined(rows, routing), routing


def assignments_as_items(routing: Routing) -> Routing:
    """The routing of the S rows that came out of experts, each to the expert it came from; itself if they are items."""
    if sections_of(routing).each_once:
        return routing
    own = torch.arange(routing.num_assignments, device=routing.item.device)
    return Routing(own, routing.expert, routing.weight, routing.num_assignments, routing.num_experts)


def combined(rows: Tensor, routing: Routing) -> Tensor:
    """What `RoutedConv` does with rows [S, ...] that are done: each times its weight, summed per item: [T, ...]."""
    sections = sections_of(routing)
    if not sections.each_once:
        return combine(rows, routing)
    if not sections.unit:
        return (rows * routing.weight.view(-1, *[1] * (rows.dim() - 1))).to(rows.dtype)
    return _UnitWeight.apply(rows, routing.weight) if routing.weight.requires_grad else rows


class _UnitWeight(torch.autograd.Function):
    """``rows * weight`` where every weight is 1: no product forward, the product's gradients backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        to_rows = grad * weight.view(-1, *[1] * (grad.dim() - 1)) if torch.is_grad_enabled() else grad
        to_weight = (grad * rows).flatten(1).sum(1, dtype=weight.dtype) if ctx.needs_input_grad[1] else None
        return to_rows, to_weight
