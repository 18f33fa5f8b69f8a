"""One look at each image, one decision for all layers; and decisions that somebody else made."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.routers.base import RouterLike, Scope
from coterie.routers.planner import Planner
from coterie.routing import RouteContext, RoutePlan, Routing


class ImagePlanner(Planner):
    """Runs its router once on the images and gives every site the same `Routing` (AdvMoE, arXiv 2308.10110).

    So a network of E experts per layer has E pathways, not E to the power of its layers, and what makes images
    change their route is one small net.

    Args:
        router: over items [T, C, H, W], such as ``Router(ResidualScore(2), TopK(1, 2), StraightThrough())``.
        sites: module paths of the layers that follow, each with a `FromPlan`.

    Raises:
        OptionError: there is no site, or one stands twice.
    """

    def __init__(self, router: RouterLike, sites: Sequence[str]) -> None:
        super().__init__()
        if not sites or len(set(sites)) != len(sites):
            raise OptionError(f"sites must be one or more, each once, found {list(sites)}.")
        self.router, self.sites = router, tuple(sites)

    @property
    def num_experts(self) -> int:
        """E, of every site."""
        return self.router.num_experts

    @property
    def scope(self) -> Scope:
        """The router's: "image", or "batch" while it normalises by batch statistics."""
        return self.router.scope

    def plan(self, x: Tensor, ctx: RouteContext | None = None) -> RoutePlan:
        """``x [T, C, H, W]`` to a plan in which all sites share one routing, gradient included."""
        ctx = RouteContext() if ctx is None else ctx
        routing = self.router(x, ctx)
        return RoutePlan(dict.fromkeys(self.sites, routing), ctx.sequence, ctx.position, ctx.mask, ctx.ids)


def routes_of(index: Tensor, num_experts: int) -> Routing:
    """Item t goes to expert ``index[t]`` with weight 1: routes that are given, frozen or forced.

    Args:
        index: [T] of any integer dtype.
        num_experts: E.

    Raises:
        RoutingError: not [T] integers in [0, E).
    """
    if index.dim() != 1 or index.dtype.is_floating_point or index.dtype == torch.bool:
        raise RoutingError(f"routes must be [T] integers, found {tuple(index.shape)} of {index.dtype}.")
    expert = index.long()
    if expert.numel() and not 0 <= int(expert.min()) <= int(expert.max()) < num_experts:
        raise RoutingError(
            f"routes must be in [0, {num_experts}), found {int(expert.min())} to {int(expert.max())}."
        )  # fmt: skip
    item = torch.arange(len(expert), device=expert.device)
    return Routing(
        item, expert, torch.ones_like(expert, dtype=torch.float32), len(expert), num_experts, chosen=expert[:, None]
    )


def fixed_plan(index: Tensor, sites: Sequence[str], num_experts: int) -> RoutePlan:
    """`routes_of` for every site: what an image would have met had it been sent to ``index[t]`` throughout."""
    return RoutePlan(dict.fromkeys(sites, routes_of(index, num_experts)))
