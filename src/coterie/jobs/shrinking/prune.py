"""Fewer experts by leaving some out: statistics, which stay, the new checkpoint, what it cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coterie.jobs.shrinking.calibrated import Calibrated
from coterie.jobs.shrinking.fewer import Course, Fewer, Say, Show, Texts
from coterie.jobs.shrinking.shrink_page import prune_parts
from coterie.jobs.shrinking.shrink_sheet import kept_sheet
from coterie.models.checkpoint import Checkpoint
from coterie.models.statistics import Statistics
from coterie.surgery.edits import prune_layer
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.method import Method
from coterie.surgery.prune_plan import PruneOptions, plan_prune
from coterie.surgery.rewrite import Container

__all__ = ["Pruned", "prune"]

PAPERS: Mapping[str, str] = {
    "reap": "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression, arXiv 2510.13999",
    "naee": "Not All Experts are Equal: Efficient Expert Pruning and Skipping for Mixture-of-Experts Large Language "
    "Models, arXiv 2402.14800",
}


@dataclass(frozen=True, eq=False)
class Pruned(Fewer):
    """What `prune` made.

    Attributes:
        report: the new checkpoint, sizes before and after, perplexity, what was measured in each layer.
        redundancy: of the layers that were pruned, before.
        sites: statistics of those layers.
        kept: the experts that stayed, by the layer's number.
    """

    kept: Mapping[int, tuple[int, ...]]

    def _pictures(self) -> Sequence[str]:
        return prune_parts(self.sites, self.kept, self.redundancy)


def prune(
    model: str | Path | Checkpoint, out: str | Path, experts: int, *, method: str = "reap",
    statistics: str | Path | Statistics | None = None, texts: Texts = (),
    memory: str | int | None = None, skip_layers: Sequence[int] = (), container: Container = "auto",
    revision: str | None = None, resume: bool = False, say: Say = lambda text: None,
    show: Show = lambda sheet: None, **options: Any,
) -> Pruned:  # fmt: skip
    """Write ``model`` with fewer experts to ``out``: the others are left out, with their rows of the gates. Lossy.

    Blocks. One layer is in memory at a time. ``out`` is there when it is whole, and not before.

    Args:
        model, out, statistics, texts, memory, skip_layers, container, revision, resume, say, show: as of
            `coterie.jobs.merge`.
        experts: that each pruned layer has afterwards, on average.
        method: a name of `coterie.surgery.PRUNES`.
        options: of `coterie.surgery.PruneOptions`, beside those two.

    Raises:
        OptionError: an option that is not known, more experts than there are, or a number the router cannot do with.
        UnsupportedError: the router cannot lose rows, or NAEE is asked of one whose decisions are not known.
        CoterieError: as of `coterie.jobs.shrinking.calibrated` and `coterie.surgery.rewrite`.
    """
    chosen = PruneOptions(experts, method, **options)
    course = Course("pruning", out, container, resume, texts, memory, say, show)
    found, redundancy = course.begin(model, experts, statistics=statistics, skip_layers=skip_layers, revision=revision)
    plans = plan_prune(found.sites, chosen, found.read, found.limits, found.decide, say)
    layers = [site.layer for site in found.chosen]
    show(kept_sheet(layers, [site.num_experts for site in found.chosen], plans))
    about = _about(chosen, found, skip_layers)
    report = course.end(found, _edit(found, plans), about)
    return Pruned(report, redundancy, found.sites, dict(zip(layers, plans, strict=True)))


def _edit(found: Calibrated, plans: Sequence[tuple[int, ...]]) -> Callable[[LayerExperts], NewLayer]:
    kept = {site.name: keep for site, keep in zip(found.chosen, plans, strict=True)}

    def edit(layer: LayerExperts) -> NewLayer:
        name = layer.site.name
        if name not in kept:
            return layer.unchanged()
        return prune_layer(layer, kept[name], found.statistics[name], found.knowledge[name].decide)

    return edit


def _about(options: PruneOptions, found: Calibrated, skip: Sequence[int]) -> Method:
    summary = (
        f"Experts were left out, down to {options.experts} in a layer{'' if options.uniform else ' on average'}, with "
        f"their rows of the gates; chosen by {options.method}."
    )
    given = {**asdict(options), "skip_layers": list(skip)}
    return Method("prune", "lossy", summary, PAPERS.get(options.method, ""), found.facts(), given)
