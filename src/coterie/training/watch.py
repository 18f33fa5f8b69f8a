"""What is seen of the routing while a model learns: losses by name, experts per item, load per expert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from coterie.ops.correction import route_load
from coterie.routing import Routing


class Watch:
    """Sums over steps, taken out by `take`. Keeps counts, no graph. Final.

    Args:
        paid: site -> how many of its experts compute anything; the others, at the end, are not counted.

    Attributes:
        step_routes: site -> [R] choices of each route in the present step, over its micro-batches.
    """

    def __init__(self, paid: Mapping[str, int] | None = None) -> None:
        self._paid = dict(paid or {})
        self.step_routes: dict[str, Tensor] = {}
        self._step_load: dict[str, Tensor] = {}
        self._step_items: dict[str, int] = {}
        self._steps = 0
        self._losses: dict[str, float] = {}
        self._load: dict[str, Tensor] = {}
        self._items: dict[str, int] = {}

    def new_step(self) -> None:
        """A step begins."""
        self.step_routes, self._step_load, self._step_items = {}, {}, {}
        self._steps += 1

    @torch.no_grad()
    def saw(self, losses: Mapping[str, float], routings: Mapping[str, Routing]) -> None:
        """Add a micro-batch."""
        for name, value in losses.items():
            self._losses[name] = self._losses.get(name, 0.0) + value
        for site, routing in routings.items():
            load, items = routing.items_per_expert()[: self._paid.get(site)], _routed(routing)
            for loads, counts in ((self._step_load, self._step_items), (self._load, self._items)):
                loads[site] = loads[site] + load if site in loads else load
                counts[site] = counts.get(site, 0) + items
            if routing.chosen is not None:
                routes = route_load(routing.chosen, routing.num_routes)
                self.step_routes[site] = self.step_routes[site] + routes if site in self.step_routes else routes

    def step_mean(self) -> float | None:
        """Experts per item of the present step, over all sites; None where nothing was routed."""
        items = sum(self._step_items.values())
        return sum(int(load.sum()) for load in self._step_load.values()) / items if items else None

    def take(self) -> dict[str, Any]:
        """Mean losses per step since the last call; per site the experts per item and the load; then forget them."""
        record: dict[str, Any] = {name: value / max(1, self._steps) for name, value in self._losses.items()}
        if self._load:
            record["experts"] = [int(self._load[site].sum()) / max(1, self._items[site]) for site in self._load]
            record["load"] = [self._load[site].tolist() for site in self._load]
        self._steps, self._losses, self._load, self._items = 0, {}, {}, {}
        return record


def _routed(routing: Routing) -> int:
    """Items that were allowed something: not padding."""
    return routing.num_items if routing.probs is None else int((routing.probs.sum(1) != 0).sum())
