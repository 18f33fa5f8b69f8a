"""One forward through a network: what is known beforehand, and what is decided on the way."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from coterie.routers import FromPlan, RouterLike
from coterie.routing import RouteContext, Routing

__all__ = ["Site", "Trip"]


@dataclass(frozen=True)
class Trip:
    """Made for one forward and handed from step to step; no module keeps any of it.

    Attributes:
        ctx: as the caller gave it; with a plan, routes are followed and not decided.
        taken: site -> its routing, filled by the steps.
    """

    ctx: RouteContext
    taken: dict[str, Routing] = field(default_factory=dict)


class Site(nn.Module):
    """The place where one step of a network learns its routes.

    Args:
        num_experts: E.
        router: decides from the step's input; None: a plan is followed always.
    """

    def __init__(self, num_experts: int, router: RouterLike | None = None) -> None:
        super().__init__()
        self.name = ""  # module path, set by the model that holds it
        self.num_experts = num_experts
        self.router = router
        self._follow = FromPlan(num_experts, variable_k=False, scope="image")

    def forward(self, x: Tensor, trip: Trip) -> Routing:
        """The routing of the T items of ``x [T, C, H, W]``, written into ``trip.taken``."""
        ctx = trip.ctx.at(self.name)
        routing = self._follow(x, ctx) if self.router is None or ctx.plan is not None else self.router(x, ctx)
        trip.taken[self.name] = routing
        return routing
