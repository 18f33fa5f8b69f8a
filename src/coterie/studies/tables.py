"""A study's report for people: the verdicts, then the arms, then how it was run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from coterie.jobs.sheet import Facts, Sheet, Table

Record = Mapping[str, Any]


def sheet_of(record: Record) -> Sheet:
    """The report as a sheet for the terminal."""
    title = f"{record['study']}: {record['paper']}"
    if record["quick"]:
        title += f" (shortened to {record['scale']:.0%} of the steps: it shows nothing)"
    blocks: list[Facts | Table] = [
        Facts("Verdicts", [*map(_judged, record["claims"]), ("together", summary_of(record))]),
        Table("Numbers", *numbers_table(record)),
        Table("Arms", *arms_table(record), right=frozenset(range(1, len(record["columns"]) + 1))),
    ]
    if failures := [f"{run['arm']} seed {run['seed']}: {run['error']}" for run in record["runs"] if "error" in run]:
        blocks.append(Facts("Failures", [("failed", text) for text in failures]))
    return Sheet(title, [*blocks, Facts("Run", facts_of(record))])


def numbers_table(record: Record) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """(head, rows): what decided each claim, for each seed."""
    seeds = [str(seed) for seed in record["seeds"]]
    rows = [
        (f"({claim['key']})", *(numbers_of(claim["numbers"].get(seed, {})) for seed in seeds))
        for claim in record["claims"]
    ]
    return ["claim", *(f"seed {seed}" for seed in seeds)], rows


def summary_of(record: Record) -> str:
    """ "3 of 4 gated claims hold, 1 does not"."""
    verdicts = [claim["verdict"] for claim in record["claims"] if claim["gated"]]
    counts = {verdict: verdicts.count(verdict) for verdict in ("holds", "does not hold", "not shown")}
    text = f"{counts['holds']} of {len(verdicts)} gated claims hold"
    if counts["does not hold"]:
        text += f", {counts['does not hold']} {'does' if counts['does not hold'] == 1 else 'do'} not"
    return text + (f", {counts['not shown']} not shown" if counts["not shown"] else "")


def arms_table(record: Record) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """(head, rows): each arm's metrics, mean over the seeds."""
    rows = []
    for arm in record["arms"]:
        if arm["shown"]:
            runs = [run["metrics"] for run in record["runs"] if run["arm"] == arm["arm"] and "metrics" in run]
            rows.append([arm["arm"], *(_mean(runs, column) for column in record["columns"])])
    return ["arm", *(column["head"] for column in record["columns"])], rows


def facts_of(record: Record) -> list[tuple[str, str]]:
    """How it was run."""
    sizes, versions, host = record["text"]["bytes"], record["versions"], record["machine"]
    spent = f"{record['run_seconds']:.0f} s of one core together, {record['seconds']:.0f} s from start to end"
    return [
        ("setting", record["setting"]),
        ("text", f"{record['text']['source']} ({', '.join(f'{name} {n:,}' for name, n in sizes.items())} bytes)"),
        ("runs", f"{len(record['runs'])}, {record['jobs']} at a time: {spent}"),
        ("machine", f"{host['processor']}, {host['cores']} cores, {host['system']}, {record['date']}"),
        ("versions", ", ".join(f"{name} {number}" for name, number in versions.items())),
    ]


def kind_of(claim: Mapping[str, Any]) -> str:
    """Whether the study stands or falls with it."""
    return "Gated" if claim["gated"] else "Reported"


def verdict_of(claim: Mapping[str, Any], *, loud: bool = False) -> str:
    """The verdict, with the reason where it was not judged."""
    verdict = claim["verdict"].upper() if loud else claim["verdict"]
    return f"{verdict} ({claim['why']})" if claim["why"] else verdict


def numbers_of(numbers: Mapping[str, float | None]) -> str:
    """What decided for one seed: "hard 2.31, easy 1.90"."""
    return ", ".join(f"{name} {_number(value)}" for name, value in numbers.items())


def _judged(claim: Mapping[str, Any]) -> tuple[str, str]:
    return f"({claim['key']})", f"{verdict_of(claim, loud=True)} [{kind_of(claim).lower()}] {claim['text']}"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "?"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    return f"{value:.1e}"


def _mean(runs: Sequence[Mapping[str, Any]], column: Mapping[str, str]) -> str:
    values = [run.get(column["metric"]) for run in runs]
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    first = known[0]
    if isinstance(first, list):  # of each layer
        return " ".join(format(fmean(row), column["form"]) for row in zip(*known, strict=True))
    return format(fmean(known), column["form"])
