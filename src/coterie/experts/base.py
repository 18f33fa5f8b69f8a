"""What computes, blind to who sent the rows."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from coterie.ops.dispatch import combine
from coterie.routing import Routing


class Experts(nn.Module, ABC):
    """E functions from rows to rows. A subclass is final and defines `rows`; it may fuse `forward`."""

    num_experts: int

    @abstractmethod
    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        """[S, *D_out]: each assignment's own output, unweighted, in the order of ``routing``.

        Args:
            x: [T, *D_in], one row per item.
            routing: of the T items over ``num_experts``.
        """

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """[T, *D_out] in the dtype of ``x``: the weighted sum of each item's rows, ascending by expert id."""
        return combine(self.rows(x, routing), routing)
