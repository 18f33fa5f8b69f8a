"""Pictures for the page of `coterie merge --report` and `coterie prune --report`: likeness, groups, use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from coterie.models.statistics import SiteStatistics
from coterie.pictures import heatmap, legend
from coterie.pictures.page import section, table
from coterie.pictures.square import square
from coterie.surgery.grouping import Grouping
from coterie.surgery.redundancy import LayerRedundancy, verdict

__all__ = ["merge_parts", "prune_parts"]

_MOST = 12  # layers whose matrices are drawn: those of a large model are a megabyte each


def merge_parts(
    sites: Sequence[SiteStatistics], groupings: Mapping[int, Grouping], redundancy: Sequence[LayerRedundancy]
) -> list[str]:
    """Sections for the page of a merge."""
    rows = [(str(layer), f"{each.num_experts} to {len(each.dominants)}", each.describe())
            for layer, each in groupings.items()]  # fmt: skip
    groups = section(
        "Groups", "A group's dominant stands before the colon, those that join it after.",
        table(("layer", "experts", "groups"), rows),
    )  # fmt: skip
    return [_redundancy(redundancy), _likeness(sites, groupings), groups, _use(sites)]


def prune_parts(
    sites: Sequence[SiteStatistics], kept: Mapping[int, Sequence[int]], redundancy: Sequence[LayerRedundancy]
) -> list[str]:
    """Sections for the page of a pruning."""
    rows = [(str(layer), str(len(some)), " ".join(map(str, some))) for layer, some in kept.items()]
    stay = section("Experts that stay", "By their numbers before.", table(("layer", "kept", "experts"), rows))
    return [_redundancy(redundancy), stay, _use(sites)]


def _redundancy(layers: Sequence[LayerRedundancy]) -> str:
    rows = [
        (
            str(each.layer), str(each.experts), f"{each.output:.2f}",
            "-" if each.router is None else f"{each.router:.2f}", f"{each.effective:.1f}", str(each.idle),
        )
        for each in layers
    ]  # fmt: skip
    head = ("layer", "experts", "nearest by output", "nearest by router", "different in effect", "idle")
    return section("Redundancy before", verdict(layers), table(head, rows))


def _likeness(sites: Sequence[SiteStatistics], groupings: Mapping[int, Grouping]) -> str:
    step = -(-len(sites) // _MOST)
    drawn = []
    for site in sites[::step]:
        grouping = groupings[site.layer]
        order = [expert for some in grouping.members for expert in some]
        title = f"Layer {site.layer}: cosine of mean outputs, experts in the order of their groups"
        drawn.append(square(title, site.output_similarity, order, [len(some) for some in grouping.members]))
    grid = f'<div style="display:flex;flex-wrap:wrap;gap:14px">{"".join(drawn)}</div>'
    shown = "" if step == 1 else f" Every {step}th layer is shown."
    return section(
        "How alike experts are",
        "Each square is a layer: experts by experts, members of a group side by side inside a frame. Frames of one "
        f"colour hold experts that say the same.{shown}",
        legend("opposite", "unlike", "the same"), grid,
    )  # fmt: skip


def _use(sites: Sequence[SiteStatistics]) -> str:
    drawn = heatmap(
        f"Use of each expert in {len(sites)} layers, over a fair share", [site.layer for site in sites],
        [site.frequency * site.num_experts for site in sites],
    )  # fmt: skip
    return section(
        "Use of every expert before", "A row is a layer, a column an expert. Hover for the use over a fair share.",
        legend("a quarter or less", "a fair share", "four times or more"), drawn,
    )  # fmt: skip
