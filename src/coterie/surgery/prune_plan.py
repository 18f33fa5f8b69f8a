"""Which experts are kept, in all layers: what was asked, and what follows from the statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from coterie.errors import OptionError, UnsupportedError
from coterie.models.statistics import SiteStatistics
from coterie.surgery.deciding import Decider
from coterie.surgery.dominants import check_total, frequency_dominants
from coterie.surgery.layer import LayerExperts
from coterie.surgery.prune import SALIENCY, curve_counts
from coterie.surgery.router_knowledge import RouterLimits
from coterie.surgery.sample import sample_of
from coterie.surgery.subsets import EXHAUSTIVE, OutputSample, best_subset, count_subsets, drop_order

__all__ = ["PRUNES", "PruneOptions", "plan_prune"]

NAEE = "naee"
PRUNES = (*SALIENCY, NAEE)
"""Ways to choose the experts that stay."""

_NEEDS_ROWS = ("router-norm",)

Read = Callable[[SiteStatistics], LayerExperts]
Say = Callable[[str], None]


@dataclass(frozen=True)
class PruneOptions:
    """What is asked.

    Attributes:
        experts: that each pruned layer keeps, on average.
        method: a name of `PRUNES`.
        uniform: the same number in every layer; else as many as each layer's scores (or errors, with naee) call for.
        limit: with naee, subsets of a layer up to which all are tried.
        items: with naee, items of the sample that errors are measured on.
        seed: of whatever is drawn.

    Raises:
        OptionError: a method that is not known, or a number out of range.
    """

    experts: int
    method: str = "reap"
    uniform: bool = True
    limit: int = EXHAUSTIVE
    items: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in PRUNES:
            raise OptionError(f"method is one of: {', '.join(PRUNES)}; not {self.method!r}.")
        if self.experts < 1 or self.items < 1 or self.limit < 0:
            raise OptionError(f"A layer keeps 1 expert or more, not {self.experts}; a sample has 1 item or more.")


def plan_prune(
    sites: Sequence[SiteStatistics], options: PruneOptions, read: Read, limits: RouterLimits,
    decide: Sequence[Decider | None], say: Say = lambda text: None,
) -> list[tuple[int, ...]]:  # fmt: skip
    """The experts that stay, ascending, of every layer that is pruned. Deterministic.

    Args:
        sites: statistics of those layers.
        read: what reads a layer's weights; naee and router-norm need them.
        limits: of the routers.
        decide: how each router chooses; naee needs it.
        say: told what is being done.

    Raises:
        OptionError: the number of experts does not fit; says what does.
        UnsupportedError: rows cannot be taken from this router; or errors are asked for, and how it decides is not
            known.
    """
    if limits.refusal:
        raise UnsupportedError(
            f"Experts cannot be taken from this router: {limits.refusal}. Merge instead, which keeps its rows: "
            "coterie merge MODEL --experts N --router map"
        )
    sizes, total = [site.num_experts for site in sites], options.experts * len(sites)
    check_total(total, sizes, least=limits.least, blocks=limits.blocks, uniform=options.uniform)
    if options.method == NAEE:
        return _by_error(sites, options, read, limits, decide, say)
    generator = torch.Generator().manual_seed(options.seed)
    saliency = SALIENCY.get(options.method)
    scores = [
        saliency(site, read(site).router if options.method in _NEEDS_ROWS else {}, generator) for site in sites
    ]  # fmt: skip
    return frequency_dominants(
        scores, total, least=limits.least, blocks=limits.blocks, uniform=options.uniform
    )  # fmt: skip


def _by_error(
    sites: Sequence[SiteStatistics], options: PruneOptions, read: Read, limits: RouterLimits,
    decide: Sequence[Decider | None], say: Say,
) -> list[tuple[int, ...]]:  # fmt: skip
    kept, orders, curves = [], [], []
    least = -(-limits.least // limits.blocks) * limits.blocks
    for number, (site, how) in enumerate(zip(sites, decide, strict=True)):
        tries = count_subsets(site.num_experts, options.experts, limits.blocks)
        every = options.uniform and tries <= options.limit
        what = f"trying {tries:,} subsets" if every else "taking experts away one by one"
        say(f"Layer {site.layer} ({number + 1} of {len(sites)}): {what}")
        sample = _outputs(site, options, read, how)
        if options.uniform:
            kept.append(best_subset(sample, options.experts, limit=options.limit)[0])
            continue
        order, errors = drop_order(sample, least)
        orders.append(order)
        curves.append(errors)
    if options.uniform:
        return kept
    gone = curve_counts(curves, sum(s.num_experts for s in sites) - options.experts * len(sites), limits.blocks)
    return [
        tuple(sorted(set(range(site.num_experts)) - set(order[:count])))
        for site, order, count in zip(sites, orders, gone, strict=True)
    ]


def _outputs(site: SiteStatistics, options: PruneOptions, read: Read, decide: Decider | None) -> OutputSample:
    sample = sample_of(read(site), site.inputs, decide)
    if sample is None:
        raise UnsupportedError(
            f"How the router of layer {site.layer} decides is not known well enough to try subsets of its experts. "
            "Choose --method reap or frequency."
        )
    return sample.outputs(options.items)
