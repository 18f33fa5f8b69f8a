"""What statistics say of a model's experts: how much each is used, with what weight, and which are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from coterie.jobs.sheet import Facts, Table
from coterie.models.statistics import SiteStatistics, Statistics
from coterie.surgery.redundancy import LayerRedundancy, layer_redundancy, verdict

__all__ = ["LayerUse", "Use", "use_of"]


@dataclass(frozen=True)
class LayerUse:
    """One layer.

    Attributes:
        site, layer, tokens: module path, number, and tokens that came through.
        usage: assignments of each expert.
        gate_mass: sum of their weights.
        entropy: of the usage, over that of even usage.
        alike: the two experts whose mean outputs are most alike, and their cosine; None of a single expert.
        redundancy: how alike experts are to those nearest to them, by output and by router.
    """

    site: str
    layer: int
    tokens: int
    usage: tuple[float, ...]
    gate_mass: tuple[float, ...]
    entropy: float
    alike: tuple[int, int, float] | None
    redundancy: LayerRedundancy


@dataclass(frozen=True)
class Use:
    """All layers, and the texts that were counted."""

    texts: tuple[str, ...]
    tokens: int
    layers: Sequence[LayerUse]

    def as_record(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def table(self) -> Table:
        """One line a layer."""
        head = (
            "layer", "entropy", "busiest", "idlest", "unused", "most weight", "nearest by output", "by router",
            "most alike",
        )  # fmt: skip
        return Table("Use", head, [_row(layer) for layer in self.layers], frozenset(range(1, len(head))))

    def facts(self) -> Facts:
        """What was counted, and what it means for who wants fewer experts."""
        texts = ", ".join(self.texts) or "not said"
        words = verdict([layer.redundancy for layer in self.layers])
        return Facts("Counted", [("counted on", f"{self.tokens:,} tokens: {texts}"), ("verdict", words)])


def use_of(statistics: Statistics) -> Use:
    """What ``statistics`` of a model with experts say."""
    texts = tuple(str(text["name"]) for text in statistics.about.get("texts", []))
    return Use(texts, statistics.tokens, [_layer(site) for site in statistics.sites.values()])


def _layer(site: SiteStatistics) -> LayerUse:
    return LayerUse(
        site.name, site.layer, site.tokens, tuple(site.usage.tolist()), tuple(site.gate_mass.tolist()), site.entropy,
        _most_alike(site), layer_redundancy(site),
    )  # fmt: skip


def _most_alike(site: SiteStatistics) -> tuple[int, int, float] | None:
    count = site.num_experts
    if count < 2:
        return None
    others = site.output_similarity.clone().fill_diagonal_(-2.0)
    first, second = divmod(int(others.argmax()), count)
    return first, second, float(others[first, second])


def _row(layer: LayerUse) -> tuple[str, ...]:
    alike = "-" if layer.alike is None else f"{layer.alike[0]} and {layer.alike[1]}: {layer.alike[2]:.2f}"
    router = layer.redundancy.router
    return (
        str(layer.layer), f"{layer.entropy:.2f}", _share(layer.usage, max), _share(layer.usage, min),
        str(sum(not count for count in layer.usage)), _share(layer.gate_mass, max), f"{layer.redundancy.output:.2f}",
        "-" if router is None else f"{router:.2f}", alike,
    )  # fmt: skip


def _share(values: Sequence[float], which: Any) -> str:
    """Such as "7: 15.5%", of all."""
    best = which(range(len(values)), key=lambda expert: values[expert])
    return f"{best}: {values[best] / (sum(values) or 1):.1%}"
