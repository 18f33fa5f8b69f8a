"""The use of experts for people: what is said, in which words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.units import format_bytes

if TYPE_CHECKING:
    from coterie.jobs.tracing.usage import Usage


def sheet_of(usage: Usage) -> Sheet:
    """The blocks of `Usage.sheet`."""
    title = f"{usage.model} ({usage.family}): experts used by {usage.tokens:,} tokens"
    blocks: list[Facts | Table] = [Facts("Texts", _texts(usage)), _table(usage)]
    if len(usage.texts) > 1:
        blocks.append(Facts("Differences", _differences(usage)))
    return Sheet(title, [*blocks, Facts("Run", _run(usage))])


def _texts(usage: Usage) -> list[tuple[str, str]]:
    return [
        ("text", f"{text.text.describe()}, perplexity {format_perplexity(text.perplexity)}") for text in usage.texts
    ]


def _table(usage: Usage) -> Table:
    head = (
        "layer",
        "use, most first",
        "CV",
        "chance",
        "peak",
        "unused",
        "effective",
        "confident",
        "kept",
        "chance",
    )
    rows = [
        (
            str(site.layer), bars(site.relative.tolist()), f"{site.cv:.2f}", f"{site.cv_by_chance:.2f}",
            f"{site.peak:.1f}x", str(site.dead), f"{site.effective:.1f} of {site.num_experts}",
            f"{site.confidence:.0%}", f"{site.locality:.0%}", f"{site.locality_by_chance:.0%}",
        )
        for site in usage.sites
    ]  # fmt: skip
    return Table("Layers", head, rows, frozenset(range(2, 10)))


def _differences(usage: Usage) -> list[tuple[str, str]]:
    rows = [("difference", f"{a} and {b}: {value:.0%} of the use would have to move")
            for a, b, value in usage.differences()]  # fmt: skip
    return [*rows, ("by chance", f"{usage.difference_within():.0%}, between stretches of one text")]


def _run(usage: Usage) -> list[tuple[str, str]]:
    read = f"hits {usage.hit_rate:.0%}, read {format_bytes(usage.bytes_read)}"
    return [("memory", usage.budget.describe()), ("experts", read)]


def format_perplexity(value: float | None) -> str:
    """Three digits."""
    return "not known" if value is None else f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def bars(relative: Sequence[float], width: int = 16) -> str:
    """Loads over the mean load as a row of blocks, largest first; a fair share is half as high as the line."""
    ordered = sorted(relative, reverse=True)
    step = max(1, -(-len(ordered) // width))
    columns = [fmean(ordered[at : at + step]) for at in range(0, len(ordered), step)]
    return "".join("·" if value == 0 else "▁▂▃▄▅▆▇█"[min(7, max(0, math.ceil(4 * value) - 1))] for value in columns)
