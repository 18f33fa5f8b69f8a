"""One layer merged or pruned, and how far from the layer it was that is, on a sample of what comes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from coterie.models.statistics import SiteStatistics
from coterie.surgery.deciding import Decider
from coterie.surgery.dominants import frequency_dominants
from coterie.surgery.grouping import Grouping
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.merge import match_experts, merge_experts
from coterie.surgery.merge_plan import MergeOptions, merge_weights
from coterie.surgery.prune import keep_rows
from coterie.surgery.sample import LayerSample, expert_hidden, sample_of

__all__ = ["merge_layer", "merge_orders", "prune_layer"]


def merge_orders(
    layer: LayerExperts, grouping: Grouping, site: SiteStatistics, options: MergeOptions
) -> dict[int, Tensor]:
    """How hidden neurons must move before they are merged; the costly part of a merge. Arguments as of `merge_layer`.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    inputs = site.inputs.float()

    def features(expert: int) -> Tensor:
        own = {name: weight.float() for name, weight in layer.expert(expert).items()}
        return expert_hidden(inputs, own, layer.shape)

    return match_experts(
        layer.weights, grouping, align=options.align, reference=options.reference, features=features
    )  # fmt: skip


def merge_layer(
    layer: LayerExperts, grouping: Grouping, site: SiteStatistics, options: MergeOptions, decide: Decider | None = None,
    orders: Mapping[int, Tensor] | None = None,
) -> NewLayer:  # fmt: skip
    """``layer`` with one expert for each group. Lossy, but where the members of each group compute the same.

    Args:
        layer: as `coterie.surgery.read_layer` reads it.
        grouping: who is merged with whom, as `coterie.surgery.plan_merge` says.
        site: statistics of the layer.
        options: how.
        decide: how its router chooses; without it no error is measured.
        orders: as `merge_orders` found them; None: find them.

    Returns:
        the new layer; ``about`` has ``groups`` (the dominant first), ``before``, ``after``, and where measured
        ``error`` and ``error_of_pruning``: that of keeping as many experts by REAP instead.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    after, pairs = len(grouping.dominants), zip(grouping.dominants, grouping.members, strict=True)
    groups = [[one, *(expert for expert in some if expert != one)] for one, some in pairs]
    about: dict[str, Any] = {"before": layer.num_experts, "after": after, "groups": groups}
    if after == layer.num_experts:
        return NewLayer(layer.weights, layer.router, layer.experts_of, {**about, "error": 0.0})
    orders = merge_orders(layer, grouping, site, options) if orders is None else orders
    weights = merge_experts(layer.weights, grouping, merge_weights(site, options.weigh), orders)
    dropped = options.router == "drop"
    router = keep_rows(layer.router, grouping.dominants) if dropped else layer.router
    experts_of = None if dropped else grouping.labels
    sample = sample_of(layer, site.inputs, decide)
    if sample is not None:
        about["error"] = sample.error(weights, router, experts_of)
        about["error_of_pruning"] = _error_of_pruning(sample, site, after)
    return NewLayer(weights, router, experts_of, about)


def prune_layer(
    layer: LayerExperts, keep: Sequence[int], site: SiteStatistics, decide: Decider | None = None
) -> NewLayer:
    """``layer`` with the experts ``keep`` alone, and their rows of the gate. Lossy.

    Args:
        layer, site, decide: as of `merge_layer`.
        keep: ascending.

    Returns:
        the new layer; ``about`` has ``kept``, ``before``, ``after`` and, where measured, ``error``.
    """
    about: dict[str, Any] = {"before": layer.num_experts, "after": len(keep), "kept": list(keep)}
    weights, router = keep_rows(layer.weights, keep), keep_rows(layer.router, keep)
    sample = sample_of(layer, site.inputs, decide)
    if sample is not None:
        about["error"] = sample.error(weights, router)
    return NewLayer(weights, router, None, about)


def _error_of_pruning(sample: LayerSample, site: SiteStatistics, count: int) -> float | None:
    """What keeping ``count`` experts by REAP would do; None where the router cannot do with so few."""
    blocks, least = sample.decide.blocks, sample.decide.least()
    if count < least or count % blocks:
        return None
    (keep,) = frequency_dominants([site.reap], count, least=least, blocks=blocks)
    return sample.error(keep_rows(sample.weights, keep), keep_rows(sample.router, keep))
