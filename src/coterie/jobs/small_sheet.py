"""Compressing and quantising for people: what each layer is made of now, and what it misses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coterie.experts import IntegerWidth
from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.models.checkpoint import ExpertSite
from coterie.surgery.bits import Choices

__all__ = ["bits_sheet", "factors_sheet"]

_MEANING = (
    "root of what a matrix misses of its output over what there is, mean over experts: 0 is the same, 1 is no output."
)
_SHORT = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def bits_sheet(
    layers: Mapping[int, Mapping[str, Any]], widths: Mapping[str, Mapping[str, Sequence[IntegerWidth]]],
    sites: Sequence[ExpertSite], choices: Choices | None,
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
    return Sheet("Layers as integers", [table, Facts("", [("errors", _MEANING), *_program(choices)])])


def factors_sheet(layers: Mapping[int, Mapping[str, Any]], sites: Sequence[ExpertSite]) -> Sheet:
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
    return Sheet("Layers as factors", [table, Facts("", [("ranks", said), ("errors", _MEANING)])])


def _program(choices: Choices | None) -> list[tuple[str, str]]:
    if choices is None:
        return []
    if choices.optimal:
        return [("choice of bits", f"the best there is for the average asked (loss {choices.loss:.3g})")]
    gap = choices.loss / max(choices.bound, 1e-300) - 1
    return [("choice of bits", f"within {gap:.2%} of the best there could be (loss {choices.loss:.3g})")]
