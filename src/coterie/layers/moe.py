"""The mixture-of-experts layer: who decides and what computes meet here, and nowhere else."""

from __future__ import annotations

from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts.base import Experts
from coterie.routers.base import RouterLike
from coterie.routing import RouteContext, Routing

__all__ = ["MoE"]


class MoE(nn.Module):
    """A router and experts given from outside, and optionally a dense module that every item meets.

    Keeps nothing between calls: the routing is returned to whoever asks for it (`route_and_run`),
    and so is thread-safe where its parts are.

    Args:
        router: decides, one item per row.
        experts: compute; as many as the router routes over.
        shared: [T, D] -> [T, D], added unweighted, such as `coterie.experts.SharedExpert`.

    Raises:
        OptionError: router and experts differ in number.
    """

    def __init__(self, router: RouterLike, experts: Experts, shared: nn.Module | None = None) -> None:
        super().__init__()
        if router.num_experts != experts.num_experts:
            raise OptionError(
                f"the router routes over {router.num_experts} experts and there are {experts.num_experts}: "
                "build both with the same number."
            )
        self.router, self.experts, self.shared = router, experts, shared

    def forward(self, x: Tensor, ctx: RouteContext | None = None) -> Tensor:
        """[..., D] -> the same shape. Every leading dimension counts items: T is their product."""
        return self.route_and_run(x, ctx)[0]

    def route_and_run(self, x: Tensor, ctx: RouteContext | None = None) -> tuple[Tensor, Routing]:
        """What `forward` returns, with the routing of the T items that led to it."""
        items = x.reshape(-1, x.shape[-1])
        routing = self.router(items, ctx)
        y = self.experts(items, routing)
        if self.shared is not None:
            y = y + self.shared(items)
        return y.reshape(*x.shape[:-1], y.shape[-1]), routing
