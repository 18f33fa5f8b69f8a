"""The report of `benchmarks/training.py`, from the records of a run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from layers.arms import DENSE, OURS, PEERS
from layers.report import dtype_of, head_of, milliseconds
from layers.shapes import SHAPES

from trainings.routed import SETTINGS

Record = dict[str, Any]

# required: fixed before the first run
_NOT_SLOWER = 1.0
_OVER_DENSE = {("A", 2048): 1.4, ("S", 2048): 1.4, ("S", 512): 2.2}
_HALF = 0.6


def render(config: dict[str, Any], records: Sequence[Record]) -> str:
    """Markdown: machine, verdicts, tables, how to read them."""
    cases = [r for r in records if r["kind"] == "case"]
    alone = [r for r in records if r["kind"] == "routers"]
    parts = [
        "# Training a mixture-of-experts layer: transformers', the dense one, and ours under every router",
        head_of(config, [r for r in records if r["kind"] == "limits"]),
        "\n".join(["## Required", "", *verdicts(cases)]),
        *(_table(case, [r for r in alone if _place(r) == _place(case)]) for case in cases),
        _READING.format(**config),
    ]
    return "\n\n".join(parts) + "\n"


def verdicts(cases: Sequence[Record]) -> list[str]:
    """A line for each requirement that the run has numbers for."""
    lines = []
    for case in cases:
        about = f"{case['shape']}, {dtype_of(case)}, {case['tokens']} tokens"
        times = {arm: median(taken) for arm, taken in case["seconds"].items()}
        peers = [times[peer] for peer in PEERS if peer in times]
        if peers:
            lines.append(_line(f"{about}: time over the better of transformers'", times, OURS, min(peers), _NOT_SLOWER))
        limit = _OVER_DENSE.get((case["shape"], case["tokens"]))
        for arm in (OURS, *(s.name for s in SETTINGS if s.share == 1)):
            if limit is not None:
                lines.append(_line(f"{about}: {_label(arm)} over the dense layer", times, arm, times[DENSE], limit))
        for setting in (s for s in SETTINGS if s.share == 0.5):
            lines.append(_line(f"{about}: {setting.name} over all", times, setting.name, times.get(OURS), _HALF))
    return lines or ["- nothing of what was run is judged"]


def _line(what: str, times: dict[str, float], arm: str, base: float | None, limit: float) -> str:
    if arm not in times or base is None:
        return f"- FAIL: {what}: the answer was wrong"
    ratio = times[arm] / base
    return f"- {'pass' if ratio <= limit else 'FAIL'}: {what}: {ratio:.2f}, required at most {limit}"


def _table(case: Record, alone: Sequence[Record]) -> str:
    times = {arm: median(taken) for arm, taken in case["seconds"].items()}
    routers = {name: median(taken) for record in alone for name, taken in record["seconds"].items()}
    lines = ["| arm | experts per token | ms | over dense | over our top_k | router alone ms |",
             "| --- | ---: | ---: | ---: | ---: | ---: |"]  # fmt: skip
    for arm in (DENSE, *PEERS, OURS, *(s.name for s in SETTINGS)):
        mean = case["mean"].get(arm, SHAPES[case["shape"]].top_k)
        router = routers.get("top_k" if arm == OURS else arm)
        lines.append(
            f"| {_label(arm)}{' (once)' if arm in case['once'] else ''} | {mean:.2f} | {_time(case, arm)} | "
            f"{_ratio(times, arm, DENSE)} | {_ratio(times, arm, OURS)} | {milliseconds(router) if router else '-'} |"
        )
    title = f"## {case['shape']}, {dtype_of(case)}, {case['tokens']} tokens: {SHAPES[case['shape']].title}"
    return "\n".join([title, "", *lines, "", f"No implementation can take less than {milliseconds(case['bound'])} ms."])


def _time(case: Record, arm: str) -> str:
    if arm in case["wrong"]:
        off = case["wrong"][arm]
        return "-" if off == float("inf") and arm in PEERS else f"wrong ({off:.1e})"
    return milliseconds(median(case["seconds"][arm]))


def _ratio(times: dict[str, float], arm: str, base: str) -> str:
    return f"{times[arm] / times[base]:.2f}" if arm in times and base in times else "-"


def _label(arm: str) -> str:
    return {OURS: "coterie, top_k", DENSE: "dense", "eager": "transformers, eager",
            "grouped_mm": "transformers, grouped_mm"}.get(arm, f"coterie, {arm}")  # fmt: skip


def _place(record: Record) -> tuple[str, str, int]:
    return record["shape"], record["dtype"], record["tokens"]


_READING = """## How to read this

One layer, forward and backward with the gradients of its input and of every parameter. Times are medians of interleaved
repeats, from cold caches, with tokens of their own in every run. "dense" is one SwiGLU feed-forward with the parameters
that a token meets at k experts; all arms of ours compute with the experts of the same contest.
"experts per token" is what the router was measured to use: top_p by a p found by bisection, adamoe by as many nulls
as experts, so that half of its choices fall on nothing. The "half" rows are judged against our top_k with all choices.
The process keeps the memory it frees, in huge pages, as `coterie train` does, for every arm: see `keep_memory`.
"router alone" is the router's own forward and backward, without experts.
Peers' outputs and gradients were compared with each other and with ours; every router's layer with the plain loop over
experts under the same choice: relative error at most 1e-4 in float32 and 2e-2 in bfloat16, or the cell says "wrong".
"(once)" marks an arm whose first run took longer than six seconds. All raw numbers: {raw}."""
