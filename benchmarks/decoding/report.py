"""The report, from the records of a run."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from coterie.units import format_bytes
from decoding.models import ARMS, OURS, PEERS, TITLES
from decoding.rounds import TOLERANCE

REQUIRED = 2.0  # times faster than transformers' default, on the full scale

Record = dict[str, Any]


def render(config: dict[str, Any], records: Sequence[Record]) -> str:
    """Markdown: machine, verdict, table, how to read it."""
    answers: dict[str, dict[str, float]] = next(r["answers"] for r in records if r["kind"] == "answers")
    wrong = [arm for arm, found in answers.items() if not found["error"] <= TOLERANCE]
    times = {arm: medians(records, arm) for arm in ARMS if arm not in wrong}
    facts = config["facts"]
    machine, repository = facts["hardware"], facts["repository"]
    lines = [
        f"# One token at a time, everything in memory: {config['scale']} OLMoE-shaped model, bfloat16",
        "",
        f"- Machine: {machine['processor']}, {machine['cores']} cores, Linux {machine['kernel']}; "
        f"{config['threads']} threads",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}",
        f"- Commit {repository['commit']}, working tree {'clean' if repository['clean'] else 'NOT clean'}",
        f"- Kernel for few rows: {config['kernel'] or 'compiled'}",
        f"- A token reads {format_bytes(config['bytes_per_token'])}; memory gives {config['bandwidth'] / 2**30:.1f} "
        f"GiB/s (measured in this run): bound {1000 * _bound(config):.1f} ms",
        "",
        "## Required",
        "",
        *_verdicts(config, times, wrong),
        "",
        "| arm | ms/token | tokens/s | times faster than grouped_mm | bound/measured | greedy tokens equal | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(_row(arm, config, times, answers[arm]) for arm in ARMS),
        "",
        _READING.format(**config, tolerance=TOLERANCE),
    ]
    return "\n".join(lines) + "\n"


def medians(records: Sequence[Record], arm: str) -> list[float]:
    """The median step of each round, seconds."""
    return [median(r["seconds"]) for r in records if r["kind"] == "round" and r["arm"] == arm]


def speedup(times: dict[str, list[float]], arm: str, peer: str) -> float | None:
    """Median over the rounds of the ratio within the round; None where one of them was wrong or has not run."""
    if not times.get(arm) or not times.get(peer):
        return None
    return median(p / a for a, p in zip(times[arm], times[peer], strict=False))


def _verdicts(config: dict[str, Any], times: dict[str, list[float]], wrong: Sequence[str]) -> list[str]:
    lines = [f"- FAIL: {TITLES[arm]} computed something else than transformers" for arm in wrong]
    found = speedup(times, OURS, PEERS[0])
    if found is None:
        return [*lines, "- nothing can be judged"]
    if config["scale"] != "full":
        return [*lines, f"- {found:.2f} times faster than transformers; only the full scale is judged"]
    word = "pass" if found >= REQUIRED else "FAIL"
    return [*lines, f"- {word}: times faster than transformers' default: {found:.2f}, required at least {REQUIRED}"]


def _row(arm: str, config: dict[str, Any], times: dict[str, list[float]], answer: dict[str, float]) -> str:
    same = f"{answer['same']:.0f} of {config['decode']}"
    if not times.get(arm):
        return f"| {TITLES[arm]} | - | - | - | - | {same} | {answer['error']:.1e} |"
    seconds, faster = median(times[arm]), speedup(times, arm, PEERS[0])
    cells = [
        TITLES[arm], f"{1000 * seconds:.1f}", f"{1 / seconds:.1f}", "-" if faster is None else f"{faster:.2f}",
        f"{_bound(config) / seconds:.2f}", same, f"{answer['error']:.1e}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _bound(config: dict[str, Any]) -> float:
    return float(config["bytes_per_token"]) / float(config["bandwidth"])


_READING = """Every arm is fed the same {decode} tokens after a prompt of {prompt}, over the same experts (uniform
routes, imposed: each token draws its experts anew). Arms take turns, {rounds} rounds, one process; times are medians
over the rounds of a round's median step. Before that, all logits were compared with transformers' default; an arm whose
relative error (L2, worst step) is above {tolerance} gets no time. Raw numbers: {raw}."""
