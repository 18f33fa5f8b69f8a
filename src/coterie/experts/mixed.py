"""Several kinds of experts side by side, under one range of ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
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
    one shape come out. What an item's experts give is added up part by part, each part in its own fast way;
    a part's share is rounded to the dtype of the items before the shares are added in float32 or wider.

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
        places, rows = [], []
        for part, place, own in self._shares(routing):
            places.append(place)
            rows.append(part.rows(x, own))
        _check_shapes(rows)
        back = torch.empty_like(routing.item)
        back[torch.cat(places)] = torch.arange(routing.num_assignments, device=back.device)
        return torch.cat(rows).index_select(0, back)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """As `Experts.forward`, part by part. Raises as `rows` does."""
        shares = [part(x, own) for part, _, own in self._shares(routing)]
        _check_shapes(shares)
        wide = torch.promote_types(x.dtype, torch.float32)
        return reduce(torch.add, (share.to(wide) for share in shares)).to(x.dtype)

    def _shares(self, routing: Routing) -> Iterator[tuple[Experts, Tensor, Routing]]:
        """Each part, the places [n] of its assignments, and a routing of them under the part's own ids."""
        if routing.num_experts != self.num_experts:
            raise OptionError(f"the routing is over {routing.num_experts} experts, this module has {self.num_experts}.")
        for part, first, end in self.ranges():
            place = ((routing.expert >= first) & (routing.expert < end)).nonzero().squeeze(1)
            item, expert, weight = (t.index_select(0, place) for t in (routing.item, routing.expert, routing.weight))
            yield part, place, Routing(item, expert - first, weight, routing.num_items, part.num_experts)

    def ranges(self) -> Iterator[tuple[Experts, int, int]]:
        """Each part with its first id and the one after its last."""
        ends = accumulate((cast(Experts, part).num_experts for part in self.parts), initial=0)
        for part, (first, end) in zip(self.parts, pairwise(ends), strict=True):
            yield cast(Experts, part), first, end


def with_identity(experts: Experts) -> Mixed:
    """The experts and one more, the last, that returns its rows: where identity nulls lead."""
    return Mixed([experts, Identity()])


def _check_shapes(outputs: Sequence[Tensor]) -> None:
    shapes = [tuple(each.shape[1:]) for each in outputs]
    if len(set(shapes)) > 1:
        raise OptionError(f"mixed experts must return rows of one shape, these return {shapes}.")
