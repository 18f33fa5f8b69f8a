"""Splitting and upcycling for people: what each layer became, and what is exact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.surgery.dense_split import Decision, SplitOptions

__all__ = ["decisions_sheet", "kept_sheet"]


def decisions_sheet(name: str, options: SplitOptions, decisions: Mapping[int, Decision]) -> Sheet:
    """What each layer becomes."""
    measured = all("error" in each.about for each in decisions.values())
    head = ["layer", "channels", "shared", "own", "in no expert", "overlap", "scale"]
    head += ["error", "best choice", "router agrees"] if measured else []
    rows = []
    for layer, each in decisions.items():
        about = each.about
        row = [
            str(layer), str(about["inner"]), str(about["shared"]), f"{options.cut.experts} x {about['own']}",
            str(about["inner"] - about["union"]), f"{about['overlap']:.0%}", f"{each.scale:.2f}",
        ]  # fmt: skip
        rows.append(row + ([_share(about, "error"), _share(about, "best_error"), _agreed(about)] if measured else []))
    blocks: list[Facts | Table] = [Table("Layers", head, rows, frozenset(range(1, len(head))))]
    start = next(iter(decisions.values())).about["router"]
    said = [("way", options.cut.way), ("router", f"{start}, {options.k} of {options.cut.experts} experts per token")]
    if measured:
        mean = fmean(each.about["error"] for each in decisions.values())
        said.append((
            "error", f"{mean:.0%} of a layer's output is missed on calibration tokens that nothing was fitted to; "
            "'best choice' is what the same experts would miss if a router chose the best of them.",
        ))  # fmt: skip
    return Sheet(f"Experts of {name}", [*blocks, Facts("", said)])


def kept_sheet(exactness: str, notes: Sequence[str] = ()) -> Sheet:
    """What of the function before is kept, and what a user should know."""
    return Sheet("Kept", [Facts("", [("function", exactness), *(("note", note) for note in notes)])])


def _share(about: Mapping[str, Any], name: str) -> str:
    return f"{about[name]:.1%}"


def _agreed(about: Mapping[str, Any]) -> str:
    return f"{about['agreement']:.0%} (chance {about['chance']:.0%})"
