"""Who is merged with whom, in all layers: what was asked, and the groups that follow from the statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.models.statistics import SiteStatistics
from coterie.ops.similarity import cosine_of_rows, random_similarity, weight_similarity
from coterie.registry import Registry
from coterie.surgery.dominants import coverage_dominants, frequency_dominants
from coterie.surgery.grouping import Grouping, cluster_grouping, nearest_dominant, salient_grouping
from coterie.surgery.layer import LayerExperts
from coterie.surgery.merge import Alignment, Reference

__all__ = ["DOMINANTS", "GROUPS", "MERGES", "WEIGHTS", "MergeOptions", "merge_weights", "plan_merge"]

DOMINANTS = ("coverage", "frequency", "saliency")
WEIGHTS = ("frequency", "uniform", "saliency")
ROUTERS = ("map", "drop")
_CLUSTERS, _SALIENT = "hierarchical", "salient"
_SALIENT_CAPACITY = 16

Read = Callable[[SiteStatistics], LayerExperts]
Similarity = Callable[[SiteStatistics, Read, int], Tensor]
"""(statistics of a layer, what reads its weights, a seed) -> [E, E]."""

GROUPS: Registry[Similarity] = Registry("way to group experts")

MERGES: Mapping[str, Mapping[str, Any]] = {
    "m-smoe": {},
    "average": {"weigh": "uniform", "align": "none"},
    "hc-smoe": {"group": _CLUSTERS, "uniform": True},
    "ream": {"dominant": "saliency", "group": _SALIENT, "weigh": "saliency", "router": "drop", "uniform": True},
}
"""Methods by name: the options that make them. Where nothing is said, the defaults of `MergeOptions`."""


@dataclass(frozen=True)
class MergeOptions:
    """What is asked.

    Attributes:
        experts: that each merged layer keeps, on average.
        dominant: a name of `DOMINANTS`: whom the others gather around, and how many of them a layer gets.
        group: a name of `GROUPS`: by what experts are alike.
        align, reference: as of `coterie.surgery.merge_experts`.
        weigh: a name of `WEIGHTS`: what an expert counts in its group.
        router: "map" keeps every row of the gate and says which expert it leads to: the router decides as before.
            "drop" keeps the dominants' rows alone, which changes what it decides.
        uniform: the same number in every merged layer.
        capacity: most experts in a group; None: no limit (16, or what is needed, with salient groups).
        seed: of whatever is drawn.

    Raises:
        OptionError: a name that is not known, a number out of range, or options that do not go together.
    """

    experts: int
    dominant: str = "coverage"
    group: str = "router-logits"
    align: Alignment = "weight"
    reference: Reference = "dominant"
    weigh: str = "frequency"
    router: str = "map"
    uniform: bool = False
    capacity: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        GROUPS.get(self.group)
        _one_of("dominant", self.dominant, DOMINANTS)
        _one_of("weigh", self.weigh, WEIGHTS)
        _one_of("router", self.router, ROUTERS)
        _one_of("align", self.align, get_args(Alignment))
        _one_of("reference", self.reference, get_args(Reference))
        if self.experts < 1 or (self.capacity is not None and self.capacity < 1):
            raise OptionError(f"A layer keeps 1 expert or more, in groups of 1 or more, not {self.experts}.")
        if self.capacity is not None and self.group == _CLUSTERS:
            raise OptionError("Clusters are as large as they turn out to be: leave --capacity out, or group otherwise.")

    @classmethod
    def of(cls, method: str, experts: int, **given: Any) -> MergeOptions:
        """The options of a method of `MERGES`, with what is ``given`` (and not None) in their place.

        Raises:
            OptionError: as of the class; or there is no such method.
        """
        _one_of("method", method, tuple(MERGES))
        return cls(experts, **{**MERGES[method], **{name: value for name, value in given.items() if value is not None}})


def plan_merge(
    sites: Sequence[SiteStatistics], options: MergeOptions, read: Read, *, least: int = 1, blocks: int = 1
) -> list[Grouping]:
    """The groups of every layer that is merged. Deterministic; reads weights for groups by weights or router rows.

    Args:
        sites: statistics of those layers.
        read: what reads a layer's weights.
        least, blocks: what the router needs where rows are dropped, as `coterie.surgery.RouterLimits` has it.

    Raises:
        OptionError: the number of experts does not fit; says what does.
        UnsupportedError: the router tells no logits and groups are asked by them.
        MissingExtraError: scipy is not installed and clusters are asked for.
    """
    if blocks > 1 and options.group == _CLUSTERS:
        raise OptionError(
            f"This router chooses among {blocks} groups of experts, of which clusters know nothing: its rows cannot be "
            "dropped by them. Keep the router (--router map), or group by router-logits or outputs."
        )
    alike = [GROUPS.get(options.group)(site, read, options.seed) for site in sites]
    total = options.experts * len(sites)
    chosen = _dominants(sites, alike, total, options, least, blocks)
    return [_grouped(site, each, one, options) for site, each, one in zip(sites, alike, chosen, strict=True)]


def merge_weights(site: SiteStatistics, weigh: str) -> Tensor:
    """[E] what each expert counts in its group."""
    return {"frequency": site.usage, "saliency": site.reap, "uniform": torch.ones(site.num_experts)}[weigh]


def _dominants(
    sites: Sequence[SiteStatistics], alike: Sequence[Tensor], total: int, options: MergeOptions, least: int, blocks: int
) -> list[tuple[int, ...]]:
    if options.dominant == "coverage":
        return coverage_dominants(
            [site.usage for site in sites], alike, total, least=least, blocks=blocks, uniform=options.uniform
        )
    scores = [site.reap if options.dominant == "saliency" else site.usage for site in sites]
    return frequency_dominants(scores, total, least=least, blocks=blocks, uniform=options.uniform)


def _grouped(site: SiteStatistics, alike: Tensor, dominants: tuple[int, ...], options: MergeOptions) -> Grouping:
    if options.group == _CLUSTERS:
        return cluster_grouping(site.sample_output, site.usage, len(dominants))
    if options.group == _SALIENT:
        room = max(_SALIENT_CAPACITY, -(-site.num_experts // len(dominants)))
        return salient_grouping(alike, site.reap, dominants, options.capacity or room)
    return nearest_dominant(alike, dominants, options.capacity)


def _one_of(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise OptionError(f"{what} is one of: {', '.join(names)}; not {name!r}.")


def _of_experts(site: SiteStatistics, similarity: Tensor) -> Tensor:
    """Without the routes that lead to no expert, which are the last ones."""
    return similarity[: site.num_experts, : site.num_experts]


@GROUPS.register("router-logits")
def _by_logits(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """Cosine of the router's logits over tokens (MC-SMoE)."""
    return _of_experts(site, site.logit_similarity)


@GROUPS.register("router-logits-centred")
def _by_centred_logits(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """The same without each token's mean logit, which no softmax sees."""
    return _of_experts(site, site.centred_logit_similarity)


@GROUPS.register("router-rows")
def _by_rows(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """Cosine of the rows of the gate's matrix."""
    return _of_experts(site, cosine_of_rows(read(site).router["weight"]))


@GROUPS.register("weights")
def _by_weights(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """Cosine of all weights as they lie, neurons in whatever order."""
    return weight_similarity(read(site).weights)


@GROUPS.register("outputs")
def _by_outputs(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """Cosine of the mean output on a sample common to all."""
    return site.output_similarity


@GROUPS.register(_CLUSTERS)
def _by_clusters(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """Average linkage on mean outputs (HC-SMoE); the cosine of outputs says how many clusters a layer gets."""
    return site.output_similarity


@GROUPS.register(_SALIENT)
def _by_both(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """Outputs and router logits alike (REAM)."""
    return (site.output_similarity + _of_experts(site, site.logit_similarity)) / 2


@GROUPS.register("random")
def _at_random(site: SiteStatistics, read: Read, seed: int) -> Tensor:
    """Drawn: what any other way must beat."""
    return random_similarity(site.num_experts, torch.Generator().manual_seed(seed * 1009 + site.layer))
