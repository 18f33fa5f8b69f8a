"""Several routes to one expert: what is left of a layer whose experts were merged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.experts.base import Experts
from coterie.routing import Routing

__all__ = ["Aliased"]


class Aliased(Experts):
    """R routes over fewer experts: route r leads to expert ``experts_of[r]`` of ``inner``.

    The gate before it decides as it did before merging (MC-SMoE, arXiv 2310.01334, section 3.1): an item that is
    sent to two routes of one expert uses it once, with the sum of the weights. Exact.

    Args:
        inner: the E experts there are.
        experts_of: of every route.

    Raises:
        OptionError: a route leads to no expert.
    """

    def __init__(self, inner: Experts, experts_of: Sequence[int]) -> None:
        super().__init__()
        if not experts_of or not all(0 <= expert < inner.num_experts for expert in experts_of):
            raise OptionError(f"routes must lead to experts 0 to {inner.num_experts - 1}, found {list(experts_of)}.")
        self.inner = inner
        self.experts_of = tuple(experts_of)
        self.num_experts = len(self.experts_of)
        self._table: dict[torch.device, Tensor] = {}

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        expert = self._experts(routing)
        key = routing.item * self.inner.num_experts + expert
        _, place = torch.unique(key, return_inverse=True)  # sorted: ascending by item, then expert, as the inner's are
        return self.inner.rows(x, self._inner_routing(routing, expert)).index_select(0, place)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """As `Experts.forward`, by the inner experts' own way."""
        output: Tensor = self.inner(x, self._inner_routing(routing, self._experts(routing)))
        return output

    def _experts(self, routing: Routing) -> Tensor:
        """[S] expert of every assignment."""
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} routes, this module has {self.num_experts}.")
        device = routing.expert.device
        if device not in self._table:
            self._table[device] = torch.tensor(self.experts_of, device=device)
        return self._table[device][routing.expert]

    def _inner_routing(self, routing: Routing, expert: Tensor) -> Routing:
        count = self.inner.num_experts
        key, place = torch.unique(routing.item * count + expert, return_inverse=True)
        weight = routing.weight.new_zeros(key.numel()).index_add(0, place, routing.weight)
        return Routing(key // count, key % count, weight, routing.num_items, count)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"
