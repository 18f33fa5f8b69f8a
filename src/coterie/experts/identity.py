"""The expert that returns what it is given."""

from __future__ import annotations

from torch import Tensor

from coterie.errors import OptionError
from coterie.experts.base import Experts
from coterie.ops.dispatch import dispatch
from coterie.routing import Routing

__all__ = ["Identity"]


class Identity(Experts):
    """E experts that return their rows as they are: no parameters, no products (zero-computation experts).

    Args:
        num_experts: E.

    Raises:
        OptionError: fewer than one.
    """

    def __init__(self, num_experts: int = 1) -> None:
        super().__init__()
        if num_experts < 1:
            raise OptionError(f"num_experts must be 1 or more, found {num_experts}.")
        self.num_experts = num_experts

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} experts, this module has {self.num_experts}.")
        return dispatch(x, routing)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}"
