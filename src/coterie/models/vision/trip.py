"""One forward through a network: what is known beforehand, and what is decided on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from coterie.routers import Router
from coterie.routing import RouteContext, Routing

__all__ = ["Site", "Trip"]


@dataclass(frozen=True)
class Trip:
    """Made for one forward and handed from step to step; no module keeps any of it.

    Attributes:
        ctx: as the caller gave it, for routers on the way.
        planned: site -> the routing that is followed there; None where the steps decide.
        taken: site -> its routing, filled by the steps that decide.
    """

    ctx: RouteContext = field(default_factory=RouteContext)
    planned: Mapping[str, Routing] | None = None
    taken: dict[str, Routing] = field(default_factory=dict)


class Site(nn.Module):
    """The place where one step of a network learns its routes.

    Args:
        router: decides from the step's input; None: a plan is followed always.
    """

    def __init__(self, router: Router | None = None) -> None:
        super().__init__()
        self.name = ""  # module path, set by the model that holds it
        self.router = router

    def forward(self, x: Tensor, trip: Trip) -> Routing:
        """The routing of the T items of ``x [T, C, H, W]``."""
        if trip.planned is not None:
            return trip.planned[self.name]
        assert self.router is not None, "who decides for the whole network plans before it runs"
        routing = trip.taken[self.name] = self.router(x, trip.ctx.at(self.name))
        return routing
