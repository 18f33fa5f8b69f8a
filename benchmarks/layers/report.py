"""The report, from the records of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from layers.arms import ARMS, DENSE, OURS, PEERS
from layers.shapes import SHAPES

Record = dict[str, Any]

# required: fixed before the first run
_JUDGED = ("A", "B", "S")
_DECODE = 1.6
_TRAINING = {("A", 2048): 1.4, ("B", 2048): 1.4, ("S", 512): 2.2}
_HALF = 0.6


def render(config: dict[str, Any], records: Sequence[Record]) -> str:
    """Markdown: machine, verdicts, tables, how to read them."""
    cases = [r for r in records if r["kind"] == "case"]
    halves = [r for r in records if r["kind"] == "half"]
    parts = [
        "# One mixture-of-experts layer: ours, transformers' and the dense one of equal active size",
        head_of(config, [r for r in records if r["kind"] == "limits"]),
        "\n".join(["## Required", "", *verdicts(cases, halves)]),
        *(_table(name, backward, cases) for name in SHAPES for backward in (False, True)),
        _half_table(halves),
        _READING.format(**config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdicts(cases: Sequence[Record], halves: Sequence[Record]) -> list[str]:
    """A line for each requirement that the run has numbers for."""
    lines = []
    for case in cases:
        about = f"{case['shape']}, {dtype_of(case)}"
        if case["tokens"] == 1 and not case["backward"] and case["shape"] in _JUDGED:
            lines.append(_line(f"{about}: one token times faster than transformers", speedup(case), _DECODE, False))
        limit = _TRAINING.get((case["shape"], case["tokens"]))
        if case["backward"] and limit is not None:
            what = f"{about}: training at {case['tokens']} tokens, times the dense layer's"
            lines.append(_line(what, _over_dense(case), limit, True))
    for half in (half for half in halves if half["shape"] in _JUDGED):
        share = median(half["seconds"]["half"]) / median(half["seconds"]["all"])
        what = f"{half['shape']}, {dtype_of(half)}: half the assignments at {half['tokens']} tokens, share of the time"
        lines.append(_line(what, share, _HALF, True))
    return lines or ["- nothing of what was run is judged"]


def speedup(case: Record) -> float | None:
    """Of the better peer's median over ours; None where either has no right answer."""
    peers = [median(case["seconds"][peer]) for peer in PEERS if peer in case["seconds"]]
    if OURS not in case["seconds"] or not peers:
        return None
    return min(peers) / median(case["seconds"][OURS])


def _over_dense(case: Record) -> float | None:
    return median(case["seconds"][OURS]) / median(case["seconds"][DENSE]) if OURS in case["seconds"] else None


def _line(what: str, found: float | None, limit: float, at_most: bool) -> str:
    if found is None:
        return f"- FAIL: {what}: the answer was wrong"
    good = found <= limit if at_most else found >= limit
    return f"- {'pass' if good else 'FAIL'}: {what}: {found:.2f}, required at {'most' if at_most else 'least'} {limit}"


def head_of(config: dict[str, Any], limits: Sequence[Record]) -> str:
    facts = config["facts"]
    machine, repository = facts["hardware"], facts["repository"]
    return "\n".join(
        [
            f"- Machine: {machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}; "
            f"{config['threads']} threads",
            f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}",
            f"- Commit {repository['commit']}, working tree {'clean' if repository['clean'] else 'NOT clean'}",
            f"- Kernel for few rows: {config['kernel'] or 'compiled'}",
            *(
                f"- Limits, {dtype_of(r)}: {r['bandwidth'] / 2**30:.1f} GiB/s read, {r['flops'] / 1e9:.0f} GFLOP/s"
                for r in limits
            ),
        ]
    )


def _table(name: str, backward: bool, cases: Sequence[Record]) -> str:
    rows = [case for case in cases if case["shape"] == name and case["backward"] == backward]
    if not rows:
        return ""
    head = ["dtype", "tokens", *(f"{arm} ms" for arm in ARMS), "faster than the better peer", "of dense", "bound ms",
            "bound/ours"]  # fmt: skip
    lines = [" | ".join(head), " | ".join(["---", *["---:"] * (len(head) - 1)])]
    lines += [" | ".join(_cells(case)) for case in rows]
    title = f"## {name}, {'forward and backward' if backward else 'forward'}: {SHAPES[name].title}"
    return "\n".join([title, "", *(f"| {line} |" for line in lines)])


def _cells(case: Record) -> list[str]:
    ours = median(case["seconds"][OURS]) if OURS in case["seconds"] else None
    return [
        dtype_of(case), str(case["tokens"]), *(_time(case, arm) for arm in ARMS), _figure(speedup(case)),
        _figure(_over_dense(case)), milliseconds(case["bound"]), _figure(ours and case["bound"] / ours),
    ]  # fmt: skip


def _time(case: Record, arm: str) -> str:
    if arm in case["wrong"]:
        return f"wrong ({case['wrong'][arm]:.1e})"
    if arm not in case["seconds"]:
        return "-"
    return milliseconds(median(case["seconds"][arm])) + (" (once)" if arm in case["once"] else "")


def milliseconds(seconds: float) -> str:
    text: Callable[[float], str] = "{:.2f}".format if seconds < 0.1 else "{:.0f}".format
    return text(seconds * 1000)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _half_table(halves: Sequence[Record]) -> str:
    if not halves:
        return ""
    lines = ["| shape | dtype | tokens | all ms | half ms | share |", "| --- | --- | ---: | ---: | ---: | ---: |"]
    for half in halves:
        whole, part = (median(half["seconds"][name]) for name in ("all", "half"))
        lines.append(
            f"| {half['shape']} | {dtype_of(half)} | {half['tokens']} | {milliseconds(whole)} | {milliseconds(part)} | "
            f"{part / whole:.2f} |"
        )
    return "\n".join(["## Our experts alone, forward and backward, with half the assignments", "", *lines])


def dtype_of(record: Record) -> str:
    return str(record["dtype"]).removeprefix("torch.")


_READING = """## How to read this

Times are medians of interleaved repeats; every run starts with cold caches. "eager" and "grouped_mm" are transformers'
own block with its own router; "coterie" is ours over the same tensors; "dense" is one SwiGLU feed-forward with the
parameters that a token meets, and no router. One token is timed over eight different ones (and four layers for S).
The bound is the larger of bytes over bandwidth and operations over peak, both measured in this run: forward reads the
experts that are hit, backward reads them again and writes a gradient for each.
"-" is eager where its gradients would pass 64 GiB: it makes one of all experts for each expert.
Outputs (and gradients of x and every parameter) were compared with the first of transformers' that ran, before anything
was timed: relative error at most 1e-4 in float32 and 2e-2 in bfloat16, or the cell says "wrong" and nothing is derived
from it. Every run meets tokens of its own, and none of which a rounded tie leaves the experts open.
"(once)" marks an arm whose first run took longer than six seconds: that run is its time.
All raw numbers: {raw}."""
