"""Which way to merge moves the layers of a model least, measured before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

from coterie.errors import CoterieError, UnsupportedError
from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.jobs.shrinking.calibrated import Calibrated
from coterie.surgery.edits import merge_layer
from coterie.surgery.grouping import Grouping
from coterie.surgery.merge_plan import MERGES, MergeOptions

__all__ = ["best_method"]

Say = Callable[[str], None]
Show = Callable[[Sheet], None]


def best_method(
    found: Calibrated, experts: int, options: Mapping[str, Any], say: Say, show: Show
) -> tuple[str, MergeOptions]:
    """The method of `coterie.surgery.MERGES` with the smallest mean error of layers, and its options.

    Every method is carried out on every layer, in memory; a method that this model does not allow is left out.

    Raises:
        UnsupportedError: errors cannot be measured on this model, or no method is allowed.
    """
    if not any(found.decide):
        raise UnsupportedError(
            "How this model's routers decide is not known, so that methods cannot be compared by what they do. Name "
            f"one: --method {', '.join(MERGES)}."
        )
    ways, refusals = _ways(found, experts, options)
    if not ways:
        raise UnsupportedError(f"No method merges this model: {' '.join(refusals.values())}")
    errors = _errors(found, ways, say)
    best = min(ways, key=lambda name: fmean(errors[name]))
    rows = [(name, f"{fmean(errors[name]):.3g}", f"{max(errors[name]):.3g}") for name in ways]
    rows += [(name, "-", "-") for name in refusals]
    rows.append(("pruning by REAP", *_of_pruning(errors["pruning"])))
    table = Table("Methods", ("method", "mean error", "largest"), rows, frozenset({1, 2}))
    show(Sheet("Methods, by how far they move the layers' outputs", [table, Facts("", [("chosen", best)])]))
    return best, ways[best][0]


def _ways(
    found: Calibrated, experts: int, options: Mapping[str, Any]
) -> tuple[dict[str, tuple[MergeOptions, list[Grouping]]], dict[str, str]]:
    """What each method would do, and why some do not go."""
    from coterie.jobs.shrinking.merge import plan

    ways, refusals = {}, {}
    for name in MERGES:
        try:
            chosen = MergeOptions.of(name, experts, **options)
            ways[name] = chosen, plan(found, chosen)
        except CoterieError as error:
            refusals[name] = str(error)
    return ways, refusals


def _errors(
    found: Calibrated, ways: Mapping[str, tuple[MergeOptions, list[Grouping]]], say: Say
) -> dict[str, list[float]]:
    errors: dict[str, list[float]] = {name: [] for name in [*ways, "pruning"]}
    for number, (site, decide) in enumerate(zip(found.sites, found.decide, strict=True)):
        say(f"Comparing {len(ways)} methods: layer {number + 1} of {len(found.sites)}")
        layer = found.read(site)
        pruned = None
        for name, (options, plans) in ways.items():
            about = merge_layer(layer, plans[number], site, options, decide).about
            if about.get("error") is not None:
                errors[name].append(about["error"])
            pruned = about.get("error_of_pruning", pruned)
        if pruned is not None:
            errors["pruning"].append(pruned)
    if not all(errors[name] for name in ways):
        raise UnsupportedError(
            f"The layers of this model cannot be computed apart from it. Name a method: --method {', '.join(MERGES)}."
        )
    return errors


def _of_pruning(errors: list[float]) -> tuple[str, str]:
    return (f"{fmean(errors):.3g}", f"{max(errors):.3g}") if errors else ("-", "-")
