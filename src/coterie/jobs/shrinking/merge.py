"""Fewer experts by merging those that are alike: statistics, groups, the new checkpoint, what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from coterie.errors import UnsupportedError
from coterie.jobs.shrinking.calibrated import Calibrated
from coterie.jobs.shrinking.fewer import Course, Fewer, Say, Show, Texts
from coterie.jobs.shrinking.shrink_page import merge_parts
from coterie.jobs.shrinking.shrink_sheet import groups_sheet
from coterie.models.checkpoint import Checkpoint
from coterie.models.statistics import Statistics
from coterie.surgery.edits import merge_layer, merge_orders
from coterie.surgery.grouping import Grouping
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.merge_plan import MergeOptions, plan_merge
from coterie.surgery.method import Method
from coterie.surgery.rewrite import Container

__all__ = ["Merged", "merge"]

PAPERS: Mapping[str, str] = {
    "m-smoe": "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy, arXiv 2310.01334",
    "average": "Merge, Then Compress (its baseline of plain averages), arXiv 2310.01334",
    "hc-smoe": "Retraining-Free Merging of Sparse MoE via Hierarchical Clustering, arXiv 2410.08589",
    "ream": "REAM: Merging Improves Pruning of Experts in LLMs, arXiv 2604.04356",
}


@dataclass(frozen=True, eq=False)
class Merged(Fewer):
    """What `merge` made.

    Attributes:
        report: the new checkpoint, sizes before and after, perplexity, what was measured in each layer.
        redundancy: of the layers that were merged, before.
        sites: statistics of those layers.
        groupings: who was merged with whom, by the layer's number.
    """

    groupings: Mapping[int, Grouping]

    def _pictures(self) -> Sequence[str]:
        return merge_parts(self.sites, self.groupings, self.redundancy)


def merge(
    model: str | Path | Checkpoint, out: str | Path, experts: int, *, method: str = "m-smoe",
    statistics: str | Path | Statistics | None = None, texts: Texts = (),
    memory: str | int | None = None, skip_layers: Sequence[int] = (), container: Container = "auto",
    revision: str | None = None, resume: bool = False, say: Say = lambda text: None,
    show: Show = lambda sheet: None, **options: Any,
) -> Merged:  # fmt: skip
    """Write ``model`` with fewer experts to ``out``: those that are alike become one. Lossy. Blocks.

    The statistics say which experts are alike and how much each is used; their neurons are put in one order, their
    weights averaged. One layer is in memory at a time. ``out`` is there when it is whole, and not before.

    Args:
        model, revision, memory: as of `coterie.load`.
        experts: that each merged layer has afterwards, on average.
        method: a name of `coterie.surgery.MERGES`, or "auto": what moves the layers least on the sample, of those.
        statistics: what the experts are judged by: a file of `coterie trace --statistics`.
        texts: without statistics, what they are collected on; what both models are to foretell, for the report.
        skip_layers: decoder layers that stay as they are.
        container: as of `coterie.surgery.rewrite`.
        resume: go on with unfinished work.
        say: told what is being done; show: given sheets for people as soon as they are known.
        options: of `coterie.surgery.MergeOptions`, in place of the method's own.

    Raises:
        OptionError: an option that is not known, more experts than there are, or a number the router cannot do with.
        UnsupportedError: rows are to be dropped from a router that cannot lose any, or "auto" cannot measure.
        CoterieError: as of `coterie.jobs.shrinking.calibrated` and `coterie.surgery.rewrite`.
    """
    chosen = None if method == "auto" else MergeOptions.of(method, experts, **options)
    course = Course("merging", out, container, resume, texts, memory, say, show)
    found, redundancy = course.begin(model, experts, statistics=statistics, skip_layers=skip_layers, revision=revision)
    if chosen is None:
        from coterie.jobs.shrinking.merge_auto import best_method

        method, chosen = best_method(found, experts, options, say, show)
    plans = plan(found, chosen)
    layers = [site.layer for site in found.chosen]
    show(groups_sheet(layers, plans))
    about = _about(method, chosen, found, skip_layers)
    report = course.end(found, MergeEdit(found, plans, chosen), about)
    return Merged(report, redundancy, found.sites, dict(zip(layers, plans, strict=True)))


def plan(found: Calibrated, options: MergeOptions) -> list[Grouping]:
    """The groups of every chosen layer.

    Raises:
        OptionError: the number of experts does not fit.
        UnsupportedError: rows are to be dropped from a router that cannot lose any.
    """
    if options.router == "map":
        if not all(found.knowledge[site.name].shares for site in found.chosen):
            refusal = found.limits.refusal
            remedy = f"Nor can rows be dropped: {refusal}." if refusal else "Drop rows: --router drop --uniform"
            raise UnsupportedError(
                f"The family {found.checkpoint.config.model_type!r} keeps its experts in a way of its own, in which "
                f"several rows of a gate cannot lead to one expert. {remedy}"
            )
        return plan_merge(found.sites, options, found.read)
    limits = found.limits
    if limits.refusal:
        raise UnsupportedError(
            f"Rows cannot be dropped from this router: {limits.refusal}. Keep them (exact, and the default): "
            "--router map"
        )
    return plan_merge(found.sites, options, found.read, least=limits.least, blocks=limits.blocks)


class MergeEdit:
    """The edit of every layer; what is costly is found the first time a layer is asked for and kept."""

    def __init__(self, found: Calibrated, plans: Sequence[Grouping], options: MergeOptions) -> None:
        names = [site.name for site in found.chosen]
        self._plans = dict(zip(names, plans, strict=True))
        self._found, self._options = found, options
        self._orders: dict[str, dict[int, Tensor]] = {}

    def __call__(self, layer: LayerExperts) -> NewLayer:
        name = layer.site.name
        if name not in self._plans:
            return layer.unchanged()
        site, grouping = self._found.statistics[name], self._plans[name]
        first = name not in self._orders
        if first:
            self._orders[name] = merge_orders(layer, grouping, site, self._options)
        decide = self._found.knowledge[name].decide if first else None
        return merge_layer(layer, grouping, site, self._options, decide, self._orders[name])


def _about(method: str, options: MergeOptions, found: Calibrated, skip: Sequence[int]) -> Method:
    rows = "every row of the gates is kept and leads to its group" if options.router == "map" else (
        "only the rows of the groups' dominants are kept"
    )  # fmt: skip
    summary = (
        f"Experts that are alike were merged, to {options.experts} in a layer"
        f"{' on average' if not options.uniform else ''}; {rows}."
    )
    given = {**asdict(options), "method": method, "skip_layers": list(skip)}
    return Method("merge", "lossy", summary, PAPERS[method], found.facts(), given)
