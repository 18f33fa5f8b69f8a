"""The report of `benchmarks/vision.py`, from the records of a run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from layers.report import milliseconds

from visions.arms import ARMS, DENSE, GROUPED, MASKED, NARROW

Record = dict[str, Any]

# required: fixed before the first run
_REALISED = 0.8
_JUDGED_BATCH = 128
_NOT_SLOWER = 1.0


def render(config: dict[str, Any], records: Sequence[Record]) -> str:
    """Markdown: machine, verdicts, tables, how to read them."""
    costs = {r["architecture"]: r for r in records if r["kind"] == "cost"}
    cases = [r for r in records if r["kind"] == "case"]
    parts = [
        "# Convolutional networks of experts beside the dense network: what of the saved arithmetic is saved time",
        _head(config, cases),
        "\n".join(["## Required", "", *verdicts(cases, costs)]),
        *(_table(name, mode, cases, costs) for name in costs for mode in ("inference", "training")),
        _READING.format(**config),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def verdicts(cases: Sequence[Record], costs: dict[str, Record]) -> list[str]:
    """A line for each requirement that the run has numbers for."""
    lines = []
    for case in (case for case in cases if costs[case["architecture"]]["width"] == 1):
        about = f"{case['architecture']}, {case['mode']}, batch {case['batch']}"
        if case["wrong"]:
            lines.append(f"- FAIL: {about}: the answer was wrong")
            continue
        if case["mode"] == "inference" and case["batch"] == _JUDGED_BATCH:
            share = realised(case, costs[case["architecture"]])
            lines.append(_line(f"{about}: share of the saved arithmetic that is saved time", share, _REALISED, False))
        lines.append(_line(f"{about}: time over the dense network's", _over(case, DENSE), _NOT_SLOWER, True))
    return lines or ["- nothing of what was run is judged"]


def realised(case: Record, cost: Record) -> float:
    """(1 - time over dense) / (1 - multiply-accumulates over dense), of the grouped arm."""
    return (1 - _over(case, DENSE)) / (1 - arithmetic(cost))


def arithmetic(cost: Record) -> float:
    """Multiply-accumulates of pathway and router over those of the dense network."""
    return (cost["pathway"] + cost["router"]) / cost["dense"]


def _over(case: Record, arm: str) -> float:
    return median(case["seconds"][GROUPED]) / median(case["seconds"][arm])


def _line(what: str, found: float, limit: float, at_most: bool) -> str:
    good = found <= limit if at_most else found >= limit
    return f"- {'pass' if good else 'FAIL'}: {what}: {found:.2f}, required at {'most' if at_most else 'least'} {limit}"


def _head(config: dict[str, Any], cases: Sequence[Record]) -> str:
    facts = config["facts"]
    machine, repository = facts["hardware"], facts["repository"]
    loads = [load for case in cases for load in case["load"]]
    return "\n".join([
        f"- Machine: {machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}; "
        f"{config['threads']} threads, load {min(loads, default=0):.1f} to {max(loads, default=0):.1f}",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}",
        f"- Commit {repository['commit']}, working tree {'clean' if repository['clean'] else 'NOT clean'}",
    ])  # fmt: skip


def _table(name: str, mode: str, cases: Sequence[Record], costs: dict[str, Record]) -> str:
    rows = [case for case in cases if (case["architecture"], case["mode"]) == (name, mode)]
    if not rows:
        return ""
    cost = costs[name]
    head = ["batch", *(f"{arm} ms" for arm in ARMS), "grouped over dense", "over masked", "over narrow",
            "saving realised", "images per expert"]  # fmt: skip
    lines = [" | ".join(head), " | ".join("---:" for _ in head), *(" | ".join(_cells(case, cost)) for case in rows)]
    title = (
        f"## {name}, {mode}: {cost['dense'] / 1e9:.3f} GMAC dense, {cost['pathway'] / 1e9:.3f} of one of "
        f"{cost['experts']} pathways, {cost['router'] / 1e9:.3f} of the {cost['router_name']} router: "
        f"{arithmetic(cost):.2f} of dense"
    )
    return "\n".join([title, "", *(f"| {line} |" for line in lines)])


def _cells(case: Record, cost: Record) -> list[str]:
    times = [milliseconds(median(case["seconds"][arm])) if arm in case["seconds"] else "wrong" for arm in ARMS]
    shares = " / ".join(map(str, case["shares"]))
    if case["wrong"]:
        return [str(case["batch"]), *times, "-", "-", "-", f"wrong ({case['error']:.1e})", shares]
    ratios = [f"{_over(case, arm):.2f}" for arm in (DENSE, MASKED, NARROW)]
    saved = f"{realised(case, cost):.0%}" if arithmetic(cost) < 1 else "-"
    return [str(case["batch"]), *times, *ratios, saved, shares]


_READING = """## How to read this

Images of 32x32 pixels, float32. Times are medians of interleaved repeats of one whole call: of inference the logits of
a batch; of training forward, cross entropy, backward and a step of SGD with momentum and weight decay, on experts and
router together. "dense" is the network the experts are cut from, "narrow" a dense one as narrow as one expert, without
a router: what the pathway would cost if routing were free. "masked" computes all experts and keeps the image's own,
"grouped" sends each expert its own images; they have equal weights. The router reads every image, in its own time, and
its last layer has biases that spread the images evenly, since a fresh one often sends all of them one way.
"saving realised" is (1 - time over dense) / (1 - multiply-accumulates over dense): above 100 % where narrow layers also
have less to normalise and to write, "-" where router and pathway together are as much arithmetic as the dense network.
Grouped logits, in training all gradients too, were compared with the masked ones in float64: relative error at most
1e-8, or the cell says "wrong" and there is no time. Narrower networks than the published ones are not judged. All raw
numbers: {raw}."""
