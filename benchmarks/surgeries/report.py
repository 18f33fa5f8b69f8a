"""The report of `benchmarks/surgery.py`, from the records of a run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from surgeries.child import OURS, PLAIN

Record = dict[str, Any]
MERGEKIT = "mergekit"

# required: fixed before the first run
NOT_SLOWER, THIRD = 1.0, 1 / 3


def render(config: dict[str, Any], records: Sequence[Record]) -> str:
    """Markdown: machine, verdicts, tables, how to read them."""
    tasks = [record for record in records if record["kind"] == "task"]
    factors = [record for record in records if record["kind"] == "factors"]
    parts = [
        "# Surgery: checkpoints made of checkpoints, beside mergekit and scripts that load everything",
        _head(config),
        "\n".join(["## Required", "", *verdicts(tasks, judged=config["scale"] == "full")]),
        *map(_table, tasks),
        *([_factors(config, factors)] if factors else []),
        _READING,
    ]
    return "\n\n".join(parts) + "\n"


def verdicts(tasks: Sequence[Record], *, judged: bool) -> list[str]:
    """A line for each requirement: not slower than any peer, and a third of the memory of loading everything."""
    if not judged:
        return ["- nothing is judged: the model is too small for its time or memory to mean anything"]
    lines = []
    for task in tasks:
        name, arms = task["task"], task["arms"]
        for peer in (MERGEKIT, PLAIN):
            if peer not in arms:
                continue
            if task["wrong"].get(peer):
                lines.append(f"- FAIL: {name}: {peer} made other tensors, so that nothing is compared")
                continue
            lines.append(_line(f"{name}: time over {peer}", _ratio(arms, peer, "seconds"), NOT_SLOWER))
            if peer == PLAIN:
                lines.append(_line(f"{name}: peak memory over {peer}", _ratio(arms, peer, "peak"), THIRD))
        if MERGEKIT in task["left out"]:
            lines.append(f"- not compared with mergekit: {task['left out'][MERGEKIT]}")
    return lines


def _line(what: str, ratio: float, limit: float) -> str:
    return f"- {'pass' if ratio <= limit else 'FAIL'}: {what}: {ratio:.2f}, required at most {limit:.2f}"


def _ratio(arms: dict[str, list[Record]], peer: str, measure: str) -> float:
    ours, theirs = (median(run[measure] for run in arms[name]) for name in (OURS, peer))
    return ours / theirs


def _table(task: Record) -> str:
    lines = ["| arm | seconds | of processor | peak MiB | of it anonymous MiB | time of ours | memory of ours |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for name, runs in task["arms"].items():
        if differing := task["wrong"].get(name):
            lines.append(f"| {name} | wrong: {', '.join(differing[:2])} | - | - | - | - | - |")
            continue
        seconds, peak, anonymous = (median(run[m] for run in runs) for m in ("seconds", "peak", "anonymous"))
        cpu = median(run.get("cpu", float("nan")) for run in runs)
        ratios = [f"{_ratio(task['arms'], name, measure):.2f}" for measure in ("seconds", "peak")]
        lines.append(
            f"| {name} | {seconds:.1f} | {cpu:.1f} | {peak / 2**20:.0f} | {anonymous / 2**20:.0f} | {ratios[0]} | "
            f"{ratios[1]} |"
        )
    read, wrote = task["bytes read"] / 1e9, task["bytes written"] / 1e9
    runs = len(task["arms"][OURS])
    title = f"## {task['task']}: {read:.2f} GB in, {wrote:.2f} GB out"
    return "\n".join([title, "", *lines, "", f"Medians of {runs} runs in turns."])


def _factors(config: dict[str, Any], records: Sequence[Record]) -> str:
    width, inner = config["factors"]
    lines = ["| rank | numbers | error of the output | rows | whole ms | thin ms | thin over whole |",
             "|---:|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    lines += [
        f"| {one['rank']} | {one['numbers']:.2f} | {one['error']:.3f} | {one['rows']} | {one['whole'] * 1e3:.3f} | "
        f"{one['thin'] * 1e3:.3f} | {one['thin'] / one['whole']:.2f} |"
        for one in records
    ]
    about = f"One gated expert, {width} wide with {inner} inside, float32; singular values that fall as 1 / number."
    return "\n".join(["## Experts as factors", "", about, "", *lines])


def _head(config: dict[str, Any]) -> str:
    facts = config["facts"]
    hardware, repository = facts["hardware"], facts["repository"]
    versions = facts["versions"] | ({"mergekit": config["mergekit"]} if config["mergekit"] else {})
    return "\n".join(
        [
            f"- Machine: {hardware['processor']}, {hardware['cores']} cores, Linux {hardware['kernel']}, "
            f"{hardware['file_system']}",
            f"- Versions: {', '.join(f'{k} {v}' for k, v in versions.items())}",
            f"- Commit {repository['commit']}, working tree {'clean' if repository['clean'] else 'NOT clean'}",
            f"- Scale {config['scale']}, threads {config['threads']}; raw numbers: {config['raw']}",
        ]
    )


_READING = """## How to read this

Every run is a process of its own; its time counts from the start of the interpreter, imports included. Peak memory is
the kernel's high-water mark of what is resident, mapped files included; it and the anonymous part were looked at fifty
times a second. Arms take turns, outputs are removed after each; before each run, what was written is flushed and the
sources are read once, so that nobody waits for what another left behind. Before anything is told, tensors are compared
bit for bit with those of Coterie: of an upcycled model all but the gates, which both draw at random; of mergekit's mean
to the rounding of the type it adds up in. Coterie's time includes its check of what it wrote, which no other arm does.

*upcycle* makes a mixture of two dense models, from one YAML file that mergekit and Coterie both read. *average* is the
mean of the same two, one part to three. *prune* keeps every other expert; *merge* aligns and averages neighbours, by
the same functions in both arms. Calibration is no part of it: who is kept or merged is said beforehand. mergekit does
neither of the last two."""
