"""How much of a model is there more than once: what to look at before anything is merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from coterie.models.statistics import SiteStatistics
from coterie.ops.similarity import redundancy

__all__ = ["LayerRedundancy", "layer_redundancy", "verdict"]

# mean likeness of an expert's output to its nearest one, above which experts are taken for copies, or for relatives
_COPIES, _RELATIVES = 0.95, 0.8


@dataclass(frozen=True)
class LayerRedundancy:
    """One layer.

    Attributes:
        layer: number of the decoder layer.
        experts: E.
        output: likeness of an expert's mean output to that of the expert nearest to it, on average.
        router: the same for the router's logits, centred; None where it tells none, or several routes lead to one.
        effective: how many different experts there are in effect, by their outputs.
        idle: experts that nothing was sent to.
    """

    layer: int
    experts: int
    output: float
    router: float | None
    effective: float
    idle: int


def layer_redundancy(site: SiteStatistics) -> LayerRedundancy:
    """Of one layer of a `coterie.models.Statistics`."""
    by_output = redundancy(site.output_similarity)
    by_router = (
        None
        if site.logit_gram is None or site.experts_of is not None
        else redundancy(site.centred_logit_similarity[: site.num_experts, : site.num_experts]).nearest
    )
    idle = int((site.usage == 0).sum())
    return LayerRedundancy(
        site.layer, site.num_experts, by_output.nearest, by_router, by_output.effective, idle
    )  # fmt: skip


def verdict(layers: Sequence[LayerRedundancy]) -> str:
    """What it means for who wants fewer experts. Measured errors of layers, where there are any, say it better."""
    nearest = sum(layer.output for layer in layers) / len(layers)
    idle = sum(layer.idle for layer in layers)
    who = "One expert" if idle == 1 else f"{idle} experts"
    gone = f" {who} had nothing to do in this text: start pruning there." if idle else ""
    if nearest >= _COPIES:
        return "Most experts have a near copy: merging should cost little." + gone
    if nearest >= _RELATIVES:
        return "Experts have relatives, no copies: merge, measure, and compare with pruning." + gone
    return "Experts differ: do not merge without need. A mean of unlike experts is neither." + gone
