"""Several kinds of experts side by side, under one range of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import cast

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts.base import Experts
from coterie.experts.identity import Identity
from coterie.routing import Routing

__all__ = ["Mixed", "with_identity"]


class Mixed(Experts):
    """Experts 0..E_0-1 are those of the first part, the next E_1 those of the second, and so on.

    The parts may be of any kind and of unequal inner width, as long as rows of one shape go in and rows of
    one shape come out. What an item's experts give is added up in ascending id over all parts, as anywhere.

    Args:
        parts: experts of one kind each, in the order of the ids.

    Raises:
        OptionError: there is no part.
    """

    def __init__(self, parts: Sequence[Experts]) -> None:
        super().__init__()
        if not parts:
            raise OptionError("mixed experts need at least one part.")
        self.parts = nn.ModuleList(parts)
        self.num_experts = sum(part.num_experts for part in parts)

    def rows(self, x: Tensor, routing: Routing) -> Tensor:
        """As `Experts.rows`.

        Raises:
            OptionError: the routing is over another number of experts, or the parts return unequal rows.
        """
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} experts, this module has {self.num_experts}.")
        places, rows = [], []
        for part, first, end in self.ranges():
            place = ((routing.expert >= first) & (routing.expert < end)).nonzero().squeeze(1)
            places.append(place)
            rows.append(part.rows(x, _own(routing, place, first, part.num_experts)))
        if len({each.shape[1:] for each in rows}) > 1:
            shapes = [tuple(each.shape[1:]) for each in rows]
            raise OptionError(f"mixed experts must return rows of one shape, these return {shapes}.")
        back = torch.empty_like(routing.item)
        back[torch.cat(places)] = torch.arange(routing.num_assignments, device=back.device)
        return torch.cat(rows).index_select(0, back)

    def ranges(self) -> Iterator[tuple[Experts, int, int]]:
        """Each part with its first id and the one after its last."""
        ends = accumulate((cast(Experts, part).num_experts for part in self.parts), initial=0)
        for part, (first, end) in zip(self.parts, pairwise(ends), strict=True):
            yield cast(Experts, part), first, end


def with_identity(experts: Experts) -> Mixed:
    """The experts and one more, the last, that returns its rows: where identity nulls lead."""
    return Mixed([experts, Identity()])


def _own(routing: Routing, place: Tensor, first: int, num_experts: int) -> Routing:
    """One part's share of the assignments, under the part's own ids."""
    item, expert, weight = (each.index_select(0, place) for each in (routing.item, routing.expert, routing.weight))
    return Routing(item, expert - first, weight, routing.num_items, num_experts)
