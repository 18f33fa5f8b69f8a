"""Statistics for people: one line a layer, and what they say about merging."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.jobs.tracing.statistics import Calibration
    from coterie.models.statistics import ChannelUse, FFNStatistics, SiteStatistics


def sheet_of(made: Calibration) -> Sheet:
    """The blocks of `Calibration.sheet`."""
    statistics = made.statistics
    title = f"{statistics.about['model']} ({statistics.about['family']}): statistics of {statistics.tokens:,} tokens"
    table = _experts(statistics.sites) if statistics.sites else _channels(statistics.ffns)
    return Sheet(title, [Facts("Texts", [("text", text) for text in made.texts]), table, Facts("Run", _run(made))])


def record_of(made: Calibration) -> dict[str, Any]:
    """`Calibration.as_record`."""
    statistics = made.statistics
    return {
        **statistics.about, "hash": statistics.model, "tokens": statistics.tokens, "domains": statistics.domains,
        "sites": [_site_record(site) for site in statistics.sites.values()],
        "ffns": [_ffn_record(ffn) for ffn in statistics.ffns.values()],
        "budget": made.budget, "hit_rate": made.hit_rate, "bytes_read": made.bytes_read, "seconds": made.seconds,
    }  # fmt: skip


def _experts(sites: Mapping[str, SiteStatistics]) -> Table:
    head = ("layer", "experts", "entropy", "busiest", "idlest", "unused", "redundancy")
    return Table("Layers", head, [_site_row(site) for site in sites.values()], frozenset(range(1, 7)))


def _site_row(site: SiteStatistics) -> tuple[str, ...]:
    record = _site_record(site)
    busiest, idlest = record["busiest"], record["idlest"]
    return (
        str(site.layer), str(site.num_experts), f"{site.entropy:.2f}",
        f"{busiest['expert']}: {busiest['share']:.1%}", f"{idlest['expert']}: {idlest['share']:.1%}",
        str(record["unused"]), f"{site.redundancy:.2f}",
    )  # fmt: skip


def _site_record(site: SiteStatistics) -> dict[str, Any]:
    share = site.frequency
    busiest, idlest = int(share.argmax()), int(share.argmin())
    return {
        "name": site.name, "layer": site.layer, "experts": site.num_experts, "tokens": site.tokens,
        "entropy": site.entropy, "busiest": {"expert": busiest, "share": float(share[busiest])},
        "idlest": {"expert": idlest, "share": float(share[idlest])}, "unused": int((site.usage == 0).sum()),
        "redundancy": site.redundancy,
    }  # fmt: skip


def _channels(ffns: Mapping[str, FFNStatistics]) -> Table:
    with_domains = any(len(ffn.domains) > 1 for ffn in ffns.values())
    head = ("layer", "channels", "in a tenth", *(("in all domains", "in any") if with_domains else ()))
    rows = []
    for ffn in ffns.values():
        record = _ffn_record(ffn)
        more = (str(record["permanent"]), str(record["any"])) if with_domains else ()
        rows.append((str(ffn.layer), str(ffn.inner), f"{record['concentration']:.0%}", *more))
    return Table("Layers", head, rows, frozenset(range(1, 5)))


def _ffn_record(ffn: FFNStatistics) -> dict[str, Any]:
    record: dict[str, Any] = {
        "name": ffn.name, "layer": ffn.layer, "channels": ffn.inner, "tokens": ffn.tokens,
        "concentration": concentration(ffn.channel),
    }  # fmt: skip
    if len(ffn.domains) > 1:
        chosen = halves(ffn.domains)
        record |= {"permanent": int(chosen.all(0).sum()), "any": int(chosen.any(0).sum())}
    return record


def concentration(channel: Tensor) -> float:
    """Share of all activation that the most active tenth of the channels [F] has; 0.1 where all are alike."""
    count = max(1, round(len(channel) / 10))
    return float(channel.topk(count).values.sum() / channel.sum().clamp(min=1e-30))


def halves(domains: Mapping[str, ChannelUse]) -> Tensor:
    """[domains, F] bool: the more active half of the channels in each domain."""
    rows = []
    for use in domains.values():
        chosen = torch.zeros(len(use.channel), dtype=torch.bool)
        chosen[use.channel.argsort(descending=True, stable=True)[: len(use.channel) // 2]] = True
        rows.append(chosen)
    return torch.stack(rows)


def _run(made: Calibration) -> list[tuple[str, str]]:
    rows = [("memory", made.budget)]
    if made.hit_rate is not None and made.bytes_read is not None:
        rows.append(("experts", f"hits {made.hit_rate:.0%}, read {format_bytes(made.bytes_read)}"))
    statistics = made.statistics
    if statistics.sites:
        rows.append(("redundancy", _advice(fmean(site.redundancy for site in statistics.sites.values()))))
    elif len(statistics.domains) > 1:
        rows.append(("in all", "channels that are in the more active half in every domain; in any: in one at least"))
    return rows


def _advice(mean: float) -> str:
    """What the similarity of the experts says about merging them."""
    meaning = "best similarity of an expert's mean output to another's: 1 for twins, about 0 for strangers"
    return f"{mean:.2f} on average ({meaning}). Merging pays only where it is high; where it is low, prune instead."
