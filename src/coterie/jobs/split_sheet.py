"""Splitting and upcycling for people: what each layer became, sizes before and after, what is exact."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from coterie.jobs.sheet import Facts, Sheet, Table, count
from coterie.surgery.dense_split import Decision, SplitOptions
from coterie.surgery.rewrite import Rewritten
from coterie.units import format_bytes

__all__ = ["decisions_sheet", "sizes_sheet"]


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


def sizes_sheet(made: Rewritten, exactness: str, more: Mapping[str, str] | None = None) -> Sheet:
    """Sizes before and after, and what is exact."""
    pairs = [
        ("parameters", made.before.parameters, made.after.parameters, count),
        ("active per token", made.before.active, made.after.active, count),
        ("bytes of weights", made.before.nbytes, made.after.nbytes, format_bytes),
        ("FLOPs per token", made.before.flops, made.after.flops, count),
    ]  # fmt: skip
    rows = [
        [label, text(before), text(after), f"{after / before - 1:+.0%}" if before else "-"]
        for label, before, after, text in pairs
    ]
    facts = [*(more or {}).items(), ("function", exactness)]
    if made.difference is not None:
        facts.append(("checked", f"written and read again: logits differ by {made.difference:.1e} of their spread"))
    table = Table("Sizes", ("", "before", "after", ""), rows, frozenset({1, 2, 3}))
    return Sheet(f"Written to {made.path.name}", [table, Facts("", facts)])


def _share(about: Mapping[str, Any], name: str) -> str:
    return f"{about[name]:.1%}"


def _agreed(about: Mapping[str, Any]) -> str:
    return f"{about['agreement']:.0%} (chance {about['chance']:.0%})"
