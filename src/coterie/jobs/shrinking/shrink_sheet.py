"""Merging and pruning for people: what is there twice, who goes with whom, and how far each layer's output moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.surgery.grouping import Grouping
from coterie.surgery.redundancy import LayerRedundancy, verdict

__all__ = ["errors_sheet", "groups_sheet", "kept_sheet", "redundancy_sheet"]

_LONG = 100  # characters of a cell, after which it is cut


def redundancy_sheet(name: str, tokens: int, layers: Sequence[LayerRedundancy]) -> Sheet:
    """Before anything is done."""
    head = ("layer", "experts", "nearest by output", "nearest by router", "different in effect", "idle")
    rows = [
        (
            str(each.layer), str(each.experts), f"{each.output:.2f}",
            "-" if each.router is None else f"{each.router:.2f}", f"{each.effective:.1f}", str(each.idle),
        )
        for each in layers
    ]  # fmt: skip
    table = Table("Redundancy", head, rows, frozenset(range(1, 6)))
    return Sheet(f"Redundancy of {name}, on {tokens:,} tokens", [table, Facts("", [("verdict", verdict(layers))])])


def groups_sheet(layers: Sequence[int], groupings: Sequence[Grouping]) -> Sheet:
    """Who is merged with whom; a group's dominant stands before the colon."""
    rows = [
        (str(layer), f"{each.num_experts} to {len(each.dominants)}", _cut(each.describe()))
        for layer, each in zip(layers, groupings, strict=True)
    ]
    return Sheet("Groups", [Table("Groups", ("layer", "experts", "groups"), rows), _total(groupings)])


def kept_sheet(layers: Sequence[int], before: Sequence[int], kept: Sequence[Sequence[int]]) -> Sheet:
    """Which experts stay."""
    rows = [
        (str(layer), f"{count} to {len(some)}", _cut(" ".join(map(str, some))))
        for layer, count, some in zip(layers, before, kept, strict=True)
    ]
    total = Facts("", [("in all", f"{sum(before)} experts to {sum(map(len, kept))}")])
    return Sheet("Experts that stay", [Table("Kept", ("layer", "experts", "kept"), rows), total])


def errors_sheet(layers: Mapping[int, Mapping[str, Any]], verb: str) -> Sheet | None:
    """How far the layers' outputs moved on the sample; None where nothing was measured."""
    measured = {layer: about for layer, about in layers.items() if about.get("error") is not None}
    if not measured:
        return None
    other = any(about.get("error_of_pruning") is not None for about in measured.values())
    head = ("layer", "experts", f"error of {verb}", *(("error of pruning by REAP",) if other else ()))
    rows = [
        (
            str(layer), f"{about['before']} to {about['after']}", _error(about["error"]),
            *((_error(about.get("error_of_pruning")),) if other else ()),
        )
        for layer, about in measured.items()
    ]  # fmt: skip
    said = Facts("", [("errors", _meaning(measured, other))])
    return Sheet("Layers on the sample", [Table("Errors", head, rows, frozenset(range(1, 4))), said])


def _meaning(measured: Mapping[int, Mapping[str, Any]], other: bool) -> str:
    text = "norm of what changed over the norm of the layer's routed output: 0 is the same, 1 is no output."
    pairs = [(a["error"], a["error_of_pruning"]) for a in measured.values() if a.get("error_of_pruning") is not None]
    if not other or not pairs:
        return text
    merging, pruning = fmean(one for one, _ in pairs), fmean(two for _, two in pairs)
    if merging <= pruning:
        return f"{text} Merging moves less than pruning as many experts by REAP would ({merging:.2g} to {pruning:.2g})."
    return (
        f"{text} Pruning as many experts by REAP would move less ({pruning:.2g} to {merging:.2g}): compare with "
        "coterie prune --method reap."
    )


def _total(groupings: Sequence[Grouping]) -> Facts:
    before, after = sum(each.num_experts for each in groupings), sum(len(each.dominants) for each in groupings)
    return Facts("", [("in all", f"{before} experts to {after}")])


def _error(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONG else f"{text[: _LONG - 4]} ..."
