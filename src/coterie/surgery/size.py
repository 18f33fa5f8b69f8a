"""How large a model is and what a token costs, from its headers alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import comb
from typing import Any

from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.models.counts import count_parameters

__all__ = ["Size", "size_of"]


@dataclass(frozen=True)
class Size:
    """Of one model.

    Attributes:
        parameters: all of them; of factored experts, the numbers of their factors.
        active: those that a token meets, as an expectation.
        nbytes: of all weights on disk.
        flops: of one token, one multiplication and one addition for every active parameter but the embeddings.
        experts: of each layer that has some.
    """

    parameters: int
    active: float
    nbytes: int
    flops: float
    experts: tuple[int, ...] = ()

    def as_record(self) -> dict[str, Any]:
        """A JSON table."""
        return asdict(self)


def size_of(checkpoint: Checkpoint) -> Size:
    """Count ``checkpoint``: headers only."""
    counted = count_parameters(checkpoint.config)
    active = dict(counted.active)
    total, met = counted.num_total, counted.num_active
    for site in checkpoint.sites:
        if site.kind is not None:
            numbers = [site.kind.parameters(e) for e in range(site.num_experts)]
            products = [site.kind.multiplications(e) for e in range(site.num_experts)]
            total += sum(numbers)
            met += sum(numbers) * share(site)
            active["experts"] += sum(products) * share(site)
    nbytes = sum(part.nbytes for part in checkpoint.ranges.values())
    flops = 2 * (sum(active.values()) - active["embeddings"])
    if not counted.total["output head"]:  # tied: it is counted as the embedding
        flops += 2 * counted.total["embeddings"]
    return Size(total, met, nbytes, flops, tuple(site.num_experts for site in checkpoint.sites))


def share(site: ExpertSite) -> float:
    """Share of a site's experts that a token meets; of routes to one expert, as if all choices were as likely."""
    if site.experts_of is None:
        return site.top_k / site.num_experts
    routes, k = site.num_routes, site.top_k
    missed = sum(
        comb(routes - site.experts_of.count(expert), k) / comb(routes, k) for expert in range(site.num_experts)
    )  # fmt: skip
    return 1 - missed / site.num_experts
