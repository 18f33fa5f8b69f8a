"""How one site's tokens spread over its experts: counts, and the numbers the field reads from them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from coterie.routing import RoutePlan, Routing

# tokens that are kept together when a text is split in two to see how much chance there is in its numbers
_STRETCH = 64


@dataclass(frozen=True, eq=False)
class SiteUse:
    """How T tokens used the E experts of a site.

    Attributes:
        site, layer: module path and layer number.
        load: [E] int64, tokens that each expert had.
        halves: [2, E] int64: the same for every other stretch of 64 tokens, fewer in a short text, to see what
            is chance.
        tokens: T.
        confident: sum over tokens of the largest weight's share of all weights of the token.
        kept, pairs: experts of a token that the token before had too, and experts of all tokens with one before.
    """

    site: str
    layer: int
    load: Tensor
    halves: Tensor
    tokens: int
    confident: float
    kept: int
    pairs: int

    def __add__(self, other: SiteUse) -> SiteUse:
        assert self.site == other.site, (self.site, other.site)
        return SiteUse(
            self.site, self.layer, self.load + other.load, self.halves + other.halves, self.tokens + other.tokens,
            self.confident + other.confident, self.kept + other.kept, self.pairs + other.pairs,
        )  # fmt: skip

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.load)

    @property
    def shares(self) -> Tensor:
        """[E] float64: share of the tokens that each expert had; sums to the mean number of choices."""
        return self.load.double() / max(1, self.tokens)

    @property
    def relative(self) -> Tensor:
        """[E] float64: load over the mean load; 1 is a fair share."""
        return self.load.double() / self.load.double().mean().clamp_min(1e-12)

    @property
    def cv(self) -> float:
        """Coefficient of variation of the load: its standard deviation over its mean; 0 is even."""
        return float(self.relative.std(correction=0))

    @property
    def cv_by_chance(self) -> float:
        """What a router that is perfectly even in the long run would show with so few tokens."""
        p = min(1.0, float(self.shares.mean()))
        return math.sqrt((1 - p) / (self.tokens * p)) if p and self.tokens else 0.0

    @property
    def peak(self) -> float:
        """The largest load over the mean load."""
        return float(self.relative.max())

    @property
    def dead(self) -> int:
        """Experts that no token had."""
        return int((self.load == 0).sum())

    @property
    def effective(self) -> float:
        """Effective number of experts: exp of the entropy of the load; E when even, 1 when all have the same."""
        p = self.load.double() / max(1, int(self.load.sum()))
        return float(torch.exp(-torch.xlogy(p, p).sum())) if self.tokens else 0.0

    @property
    def confidence(self) -> float:
        """Mean share of a token's largest weight in its weights: 1 is certain, 1/K undecided."""
        return self.confident / max(1, self.tokens)

    @property
    def locality(self) -> float:
        """Share of a token's experts that the token before had too."""
        return self.kept / max(1, self.pairs)

    @property
    def locality_by_chance(self) -> float:
        """The same, were tokens drawn in any order: sum of squared shares over the mean number of choices."""
        return float(self.shares.square().sum() / self.shares.sum().clamp_min(1e-12))

    def as_record(self) -> dict[str, Any]:
        numbers = (
            "cv", "cv_by_chance", "peak", "dead", "effective", "confidence", "locality", "locality_by_chance",
        )  # fmt: skip
        return {
            "site": self.site, "layer": self.layer, "num_experts": self.num_experts, "tokens": self.tokens,
            "load": self.load.tolist(), **{name: getattr(self, name) for name in numbers},
        }  # fmt: skip


def site_uses(plan: RoutePlan, layers: dict[str, int]) -> list[SiteUse]:
    """Count a plan. ``layers``: site -> layer number. Padding is not counted."""
    return [_site_use(site, layers[site], routing, plan) for site, routing in plan.sites.items()]


def _site_use(site: str, layer: int, routing: Routing, plan: RoutePlan) -> SiteUse:
    real = torch.ones(routing.num_items, dtype=torch.bool) if plan.mask is None else plan.mask
    routing = routing.masked(real)
    has = torch.zeros(routing.num_items, routing.num_experts, dtype=torch.bool)
    has[routing.item, routing.expert] = True
    follows = _follows(plan, routing.num_items) & real & real.roll(1)
    stretch = torch.arange(routing.num_items) // max(1, min(_STRETCH, routing.num_items // 8)) % 2
    weight = routing.dense().double()
    share = weight.amax(-1) / weight.sum(-1).clamp_min(1e-12)
    return SiteUse(
        site, layer, has.sum(0), torch.stack([has[stretch == half].sum(0) for half in (0, 1)]), int(real.sum()),
        float(share[real].sum()), int((has & has.roll(1, 0))[follows].sum()), int(has[follows].sum()),
    )  # fmt: skip


def _follows(plan: RoutePlan, items: int) -> Tensor:
    """[T] whether an item comes right after the item in front of it, in one sequence."""
    follows = torch.zeros(items, dtype=torch.bool)
    if plan.sequence is not None and plan.position is not None:
        follows[1:] = (plan.sequence.diff() == 0) & (plan.position.diff() == 1)
    return follows


def difference(first: Tensor, second: Tensor) -> float:
    """Total variation distance of two loads [E]: the share of one that would have to move to become the other."""
    p, q = (load.double() / load.double().sum().clamp_min(1e-12) for load in (first, second))
    return float((p - q).abs().sum() / 2)
