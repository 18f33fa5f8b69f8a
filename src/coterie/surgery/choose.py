"""The channels of one layer's experts: a shared part first, then what a way makes of the rest; or Read-ME's lists."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.surgery.channels import LayerChannels
from coterie.surgery.feed_forward import FeedForward
from coterie.surgery.ways import WAYS, domain_scores

__all__ = ["Cut", "choose_channels", "most_used", "shared_size"]

_BY_DOMAIN = ("activation", "gradient")


@dataclass(frozen=True)
class Cut:
    """How a dense layer is to be cut.

    Attributes:
        experts: E.
        way: a name of `coterie.surgery.WAYS`.
        shared: share of the channels, from 0 to below 1, that every item passes: those that do most overall.
        density: share of the channels that each expert has, chosen for its domain alone, so that experts overlap and
            channels of no domain are lost (Read-ME); None deals every channel out once.
        permanent: with ``density``, channels that all experts have become the shared expert; else each carries them.
        seed: of whatever is drawn.

    Raises:
        OptionError: a number that is out of its range, a way that is not known, or options that do not go together.
    """

    experts: int
    way: str = "kmeans"
    shared: float = 0.0
    density: float | None = None
    permanent: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        WAYS.get(self.way)
        if self.experts < 1:
            raise OptionError(f"A layer is cut into 1 expert or more, not {self.experts}.")
        if not 0 <= self.shared < 1:
            raise OptionError(f"The shared expert has from 0 to below 1 of the channels, not {self.shared}. Try 0.25.")
        if self.density is not None and not 0 < self.density <= 1:
            raise OptionError(f"An expert has above 0 to 1 of the channels, not {self.density}. Try 0.5.")
        if self.density is not None and self.way not in _BY_DOMAIN:
            raise OptionError(
                f"A density chooses channels for domains, which {self.way} does not know: it goes with "
                f"{' and '.join(_BY_DOMAIN)}."
            )
        if self.density is not None and self.shared:
            raise OptionError(
                "With a density the shared channels are those that all experts have: choose permanent instead of a "
                "share."
            )
        if self.permanent and self.density is None:
            raise OptionError("permanent is about experts that overlap: it goes with a density.")


def choose_channels(layer: FeedForward, cut: Cut) -> LayerChannels:
    """The channels of every expert of ``layer``. Deterministic.

    Raises:
        OptionError: the channels left do not fall into E equal parts, or the way needs text or domains that are
            not there.
    """
    if cut.density is not None:
        scores = domain_scores(layer, cut.way, cut.experts)
        lists = most_used(scores, max(1, int(cut.density * layer.inner)))
        found = _with_permanent(lists, layer.inner)
        return found if cut.permanent else found.fused()
    count = shared_size(layer.inner, cut.experts, cut.shared)
    shared = _top(layer.importance(), count) if count else torch.empty(0, dtype=torch.int64)
    rest = torch.ones(layer.inner, dtype=torch.bool)
    rest[shared] = False
    pool = rest.nonzero()[:, 0]
    own = WAYS.get(cut.way)(layer, pool, cut.experts, cut.seed)
    return LayerChannels(shared, own.sort(dim=1).values, layer.inner)


def shared_size(inner: int, experts: int, share: float) -> int:
    """Shared channels: about ``share`` of ``inner``, such that the rest falls into equal parts; 0 for a share of 0."""
    if share == 0:
        return 0
    wanted = round(share * inner)
    sizes = range(inner % experts, inner - experts + 1, experts)
    return min((size for size in sizes if size > 0), key=lambda size: abs(size - wanted), default=0)


def most_used(scores: Tensor, count: int) -> Tensor:
    """[E, count] int64, ascending: of each row of ``scores [E, F]`` the largest; the lower channel wins a tie."""
    return torch.stack([_top(row, count) for row in scores])


def _top(scores: Tensor, count: int) -> Tensor:
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def _with_permanent(lists: Tensor, inner: int) -> LayerChannels:
    """Lists of one length as what they have in common, and what each has beside it."""
    counts = torch.zeros(inner, dtype=torch.int64).index_add_(0, lists.flatten(), torch.ones_like(lists.flatten()))
    common = counts == len(lists)
    own = lists[~common[lists]].view(len(lists), -1)
    return LayerChannels(common.nonzero()[:, 0], own, inner)
