"""Compressing and quantising for people: what each layer is made of now, and what it misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.experts import IntegerWidth
from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.models.checkpoint import Checkpoint, ExpertSite
from coterie.pictures.line_chart import line_chart
from coterie.pictures.page import section
from coterie.surgery.bits import Choices
from coterie.units import format_bytes

__all__ = ["bits_sheet", "expert_fact", "factors_sheet", "layers_pictures"]

_MEANING = (
    "root of what a matrix misses of its output over what there is, mean over experts: 0 is the same, 1 is no output."
)
_SHORT = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def bits_sheet(
    layers: Mapping[int, Mapping[str, Any]], widths: Mapping[str, Mapping[str, Sequence[IntegerWidth]]],
    sites: Sequence[ExpertSite], choices: Choices | None, expert: tuple[str, str],
) -> Sheet:  # fmt: skip
    """Bits and errors of each layer; of a mixture, how many matrices got how many bits."""
    names = list(next(iter(widths.values())))
    mixed = choices is not None
    head = ("layer", "experts", "bits", *(("8-bit matrices",) if mixed else ()), *(f"error {_SHORT[n]}" for n in names))
    rows = []
    for site in sites:
        about = layers[site.layer]
        eight = sum(width.bits == 8 for each in widths[site.name].values() for width in each)
        bits = sum(about["bits"].values()) / len(names)
        rows.append((
            str(site.layer), str(site.num_experts), f"{bits:.2f}",
            *((f"{eight} of {len(names) * site.num_experts}",) if mixed else ()),
            *(f"{about['error'][name]:.2g}" for name in names),
        ))  # fmt: skip
    table = Table("Layers", head, rows, frozenset(range(1, len(head))))
    return Sheet("Layers as integers", [table, Facts("", [expert, ("errors", _MEANING), *_program(choices)])])


def factors_sheet(
    layers: Mapping[int, Mapping[str, Any]], sites: Sequence[ExpertSite], expert: tuple[str, str]
) -> Sheet:  # fmt: skip
    """Ranks and errors of each layer."""
    names = list(layers[sites[0].layer]["ranks"])
    head = (
        "layer",
        "experts",
        *(f"rank {_SHORT[n]}" for n in names),
        "kept of S",
        *(f"error {_SHORT[n]}" for n in names),
    )
    rows = []
    for site in sites:
        about = layers[site.layer]
        rows.append((
            str(site.layer), str(about["experts"]), *(f"{about['ranks'][name]:.4g}" for name in names),
            f"{about['kept']:.1%}", *(f"{about['error'][name]:.2g}" for name in names),
        ))  # fmt: skip
    table = Table("Layers", head, rows, frozenset(range(1, len(head))))
    said = "mean rank of the product; 0 where a matrix stays whole because factors would be no smaller."
    return Sheet("Layers as factors", [table, Facts("", [expert, ("ranks", said), ("errors", _MEANING)])])


def expert_fact(before: Checkpoint, after: Checkpoint) -> tuple[str, str]:
    """What the largest expert takes on disk, and in the store's memory, which holds the same bytes."""
    was, now = before.bytes_per_expert, after.bytes_per_expert
    return "an expert", f"{format_bytes(was)} to {format_bytes(now)}: what coterie run --memory reads and keeps of it"


def layers_pictures(layers: Mapping[int, Mapping[str, Any]], what: str, title: str) -> list[str]:
    """Charts for the page: ``what`` and error of each matrix over the layers, and the one against the other."""
    known = {layer: about for layer, about in sorted(layers.items()) if what in about}
    names = [name for name in _SHORT if name in next(iter(known.values()), {}).get(what, {})]

    def over_layers(key: str) -> dict[str, list[tuple[float, float]]]:
        return {_SHORT[n]: [(layer, float(about[key][n])) for layer, about in known.items()] for n in names}

    pairs = {
        _SHORT[n]: sorted((float(about[what][n]), float(about["error"][n])) for about in known.values()) for n in names
    }
    note = "Mean over the experts of a layer. " + _MEANING[0].upper() + _MEANING[1:]
    return [
        section(f"{title.capitalize()} by layer", note, line_chart(over_layers(what), "layer", title)),
        section("Error by layer", note, line_chart(over_layers("error"), "layer", "error")),
        section(f"{title.capitalize()} against error", note, line_chart(pairs, title, "error")),
    ]


def _program(choices: Choices | None) -> list[tuple[str, str]]:
    if choices is None:
        return []
    if choices.optimal:
        return [("choice of bits", f"the best there is for the average asked (loss {choices.loss:.3g})")]
    gap = choices.loss / max(choices.bound, 1e-300) - 1
    return [("choice of bits", f"within {gap:.2%} of the best there could be (loss {choices.loss:.3g})")]
