"""An upcycled model for people: where each expert comes from."""

from __future__ import annotations

from pathlib import Path

from coterie.jobs.growing.upcycle_gates import Alike
from coterie.jobs.growing.upcycle_plan import ExpertSource, UpcyclePlan
from coterie.jobs.sheet import Facts, Sheet, Table

__all__ = ["experts_sheet"]

_LONG = 60  # characters of a prompt, after which it is cut


def experts_sheet(plan: UpcyclePlan, alike: Alike | None) -> Sheet:
    """Before anything is written."""
    rows = [_row(str(number), each) for number, each in enumerate(plan.experts)]
    if plan.shared is not None:
        rows.append(_row("shared", plan.shared))
    table = Table("Experts", ("expert", "model", "noise", "prompts"), rows, frozenset({2}))
    said = [
        ("attention", f"and all else is of {Path(plan.base).name}"),
        ("router", f"{plan.gates}, {plan.k} of {len(plan.experts)} experts per token"),
    ]
    if alike is not None:
        said.append(("prompts", f"cosine of the two nearest experts' up to {alike.most:.3f}"))
    return Sheet(f"Experts of {Path(plan.base).name}", [table, Facts("", said)])


def _row(name: str, source: ExpertSource) -> tuple[str, str, str, str]:
    first = source.prompts[0].replace("\n", " ") if source.prompts else "-"
    cut = first if len(first) <= _LONG else f"{first[: _LONG - 4]} ..."
    more = f" (and {len(source.prompts) - 1} more)" if len(source.prompts) > 1 else ""
    scale = "" if source.scale == 1 else f" times {source.scale:g}"
    return name, f"{Path(source.model).name}{scale}", f"{source.noise:g}", f"{cut}{more}"
