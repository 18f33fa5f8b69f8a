"""From routes to experts: a router chooses routes, a `RouteTable` says what each one is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.errors import OptionError


@dataclass(frozen=True)
class RouteTable:
    """R routes over E experts: each route is an expert, an alias of one, or null.

    Null routes take part in scoring and selection and compute nothing (AdaMoE, arXiv 2406.13233).
    Aliases are several routes to one expert, as merging leaves behind (MC-SMoE, arXiv 2310.01334);
    an item that chooses two of them uses the expert once, with the sum of the weights.

    Attributes:
        expert: of each route, E where the route is null.
        num_experts: E.
        passes: the last expert is an identity and stands for nothing but null routes, which lead to it.

    Raises:
        OptionError: there is no route, or a route leads to no expert.
    """

    expert: tuple[int, ...]
    num_experts: int
    passes: bool = False

    def __post_init__(self) -> None:
        if not self.expert or not all(0 <= e <= self.num_experts for e in self.expert):
            raise OptionError(
                f"routes must lead to experts 0 to {self.num_experts - 1}, or to {self.num_experts} for null, "
                f"found {self.expert}."
            )

    @classmethod
    def identity(cls, num_experts: int) -> RouteTable:
        """Route r is expert r."""
        return cls(tuple(range(num_experts)), num_experts)

    @classmethod
    def with_nulls(cls, num_experts: int, num_nulls: int) -> RouteTable:
        """Routes 0..E-1 are the experts, the next ``num_nulls`` are null: on equal scores an expert wins."""
        return cls((*range(num_experts), *(num_experts for _ in range(num_nulls))), num_experts)

    @classmethod
    def with_identity_nulls(cls, num_experts: int, num_nulls: int) -> RouteTable:
        """Routes 0..E-1 are the experts, the next ``num_nulls`` all lead to expert E, which is to return its rows.

        The table is over E + 1 experts: `coterie.experts.with_identity` adds that one to any others.
        """
        return cls((*range(num_experts), *(num_experts for _ in range(num_nulls))), num_experts + 1, passes=True)

    @classmethod
    def aliases(cls, expert: tuple[int, ...] | list[int]) -> RouteTable:
        """Route r leads to ``expert[r]``; E is the highest id named plus one."""
        return cls(tuple(expert), max(expert, default=-1) + 1)

    @property
    def num_routes(self) -> int:
        """R."""
        return len(self.expert)

    @property
    def num_nulls(self) -> int:
        """Routes without a true expert behind them: to none at all, or to an identity."""
        return sum(expert >= self.num_experts - self.passes for expert in self.expert)

    @property
    def is_identity(self) -> bool:
        """Whether route r is expert r, for every r."""
        return self.expert == tuple(range(self.num_experts))

    def experts_of(self, chosen: Tensor) -> Tensor:
        """Route ids (R where empty) to expert ids (E where empty or null), any shape."""
        if self.is_identity:
            return chosen
        return torch.tensor((*self.expert, self.num_experts), device=chosen.device)[chosen]

    def per_route(self, per_expert: Tensor, null: float | bool) -> Tensor:
        """``[..., E]`` to ``[..., R]``: each route has its expert's value, null routes have ``null``."""
        if per_expert.shape[-1] != self.num_experts:
            raise OptionError(f"expected one value for each of {self.num_experts} experts, found {per_expert.shape}.")
        if self.is_identity:
            return per_expert
        column = per_expert.new_full((*per_expert.shape[:-1], 1), null)
        return torch.cat([per_expert, column], dim=-1)[..., torch.tensor(self.expert, device=per_expert.device)]
