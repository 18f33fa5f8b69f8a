"""Where each expert's rows lie, known to the host: read once per routing, however many layers share it."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch

from coterie.ops.dispatch import Groups, group_by_expert
from coterie.routing import Routing

__all__ = ["Sections", "sections_of"]


@dataclass(frozen=True, eq=False)
class Sections:
    """The S assignments of a routing, as stretches of rows, one stretch per expert.

    Attributes:
        groups: the assignments gathered by expert; None where they stand so already.
        each_once: assignment s is of item s: every item has exactly one expert, and no copy is needed.
        counts: of E numbers, how many rows each expert has.
        unit: all weights are exactly 1.
    """

    groups: Groups | None
    each_once: bool
    counts: tuple[int, ...]
    unit: bool

    @property
    def only(self) -> int | None:
        """The expert that has all rows, if one has (of no rows: the first)."""
        hit = [expert for expert, n in enumerate(self.counts) if n]
        return (hit or [0])[0] if len(hit) < 2 else None


_SEEN: WeakKeyDictionary[Routing, Sections] = WeakKeyDictionary()


def sections_of(routing: Routing) -> Sections:
    """The sections of a routing; waits for the device the first time, and remembers while the routing lives."""
    found = _SEEN.get(routing)
    if found is None:
        found = _SEEN[routing] = _read(routing)
    return found


@torch.no_grad()
def _read(routing: Routing) -> Sections:
    count = routing.num_assignments
    own = torch.arange(count, device=routing.item.device)
    groups = group_by_expert(routing)
    return Sections(
        None if torch.equal(groups.order, own) else groups,
        count == routing.num_items and torch.equal(routing.item, own),
        tuple(groups.counts.tolist()),
        bool((routing.weight == 1).all()),
    )
