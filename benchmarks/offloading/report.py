"""The report: Markdown for people, every raw number as JSON beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from offloading.answers import TOLERANCE, complaints
from offloading.arms import ARMS, JUDGED, PEER
from offloading.counters import FOREIGN_LIMIT
from offloading.scales import SCALES
from offloading.summary import Belady, Line, summarize
from offloading.verdict import judge

_MISSING = "–"


def render(config: dict[str, Any], records: Sequence[dict[str, Any]], belady: Belady | None = None) -> str:
    """The whole report. Refuses every speed-up if an answer was wrong."""
    wrong = complaints(records)
    lines = summarize(records, belady)
    parts = [_head(config), _answers(wrong, records), _verdict(config, lines, wrong)]
    for routes in dict.fromkeys(line.routes for line in lines):
        parts.append(_tables(routes, config, [line for line in lines if line.routes == routes], wrong))
    parts.append(_reading(config))
    failed = [r for r in records if r["status"] != "ok"]
    parts += [_failures(failed)] if failed else []
    return "\n\n".join(parts) + "\n"


def _head(config: dict[str, Any]) -> str:
    facts, machine = config["facts"], config["facts"]["hardware"]
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    tree = "clean" if facts["repository"]["clean"] else "NOT clean"
    limit = f"{config['limit'] / 2**30:.2f} GiB" if config["limit"] else "none (--no-limit)"
    return "\n".join(
        [
            "# Offloading: experts that do not fit the memory given",
            "",
            f"- Date: {config['date']}; commit {facts['repository']['commit']}, working tree {tree}",
            f"- Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
            f"Linux {machine['kernel']}, {machine['file_system']}, read-ahead {machine['read_ahead_kib']} KiB",
            f"- Versions: {versions}",
            f"- Model: {_model(config)}",
            f"- Memory group: {limit}, page cache included; Coterie's own budget: {config['memory_reason']}",
            f"- Run: prompt {config['prompt']} + {config['decode']} tokens, {config['repeats']} repeats, seed "
            f"{config['seed']}; kept from token to token: {_kept(config)}",
            f"- Device counter: {config['counter']['cold']} bytes of a cold and {config['counter']['warm']} of a warm "
            f"read of {config['counter']['size']} bytes",
        ]
    )


def _model(config: dict[str, Any]) -> str:
    scale = SCALES[config["scale"]]
    return (
        f"OLMoE-shaped, {scale.layers} layers x {scale.experts} experts, top-{scale.top_k}, bf16, random weights: "
        f"{scale.layers * scale.experts} experts of {scale.expert_bytes / 1e6:.2f} MB "
        f"({scale.experts_bytes / 2**30:.2f} GiB), {scale.dense_bytes / 2**30:.2f} GiB dense"
    )


def _kept(config: dict[str, Any]) -> str:
    return ", ".join(f"{name} {share:.0%}" for name, share in config["kept_shares"].items())


def _answers(wrong: Sequence[str], records: Sequence[dict[str, Any]]) -> str:
    if wrong:
        return "**Wrong answers: no speed-up is printed.** " + "; ".join(wrong) + "."
    done = [r for r in records if r["status"] == "ok"]
    ours = sum(ARMS[r["arm"]].kind == "coterie" for r in done)
    worst = max((r["error"] for r in done), default=0.0)
    return (
        f"Answers: the logits of every step are the same bits in all {ours} runs of Coterie; "
        f"all {len(done)} runs agree to {worst:.2%} (rounding; {TOLERANCE:.0%} is allowed)."
    )


def _verdict(config: dict[str, Any], lines: Sequence[Line], wrong: Sequence[str]) -> str:
    if wrong:
        return "## Required\n\nNot judged: the answers are wrong."
    if config["unjudged"]:
        return f"## Required\n\nNot judged: {config['unjudged']}."
    return f"## Required (arm: {ARMS[JUDGED].title})\n\n" + "\n".join(f"- {c.describe()}" for c in judge(lines))


Column = tuple[str, Callable[[Line], str]]


def _number(of: Callable[[Line], float | None], digits: int = 0, scale: float = 1) -> Callable[[Line], str]:
    def text(line: Line) -> str:
        value = of(line)
        return _MISSING if value is None else f"{value * scale:.{digits}f}"

    return text


_TIMES: tuple[Column, ...] = (
    ("ms/token", _number(lambda line: line.ms)),
    ("p95", _number(lambda line: line.p95)),
    ("first token ms", _number(lambda line: line.first)),
    ("times faster than mmap", _number(lambda line: line.speedup, 2)),
    ("bound ms", _number(lambda line: line.bound)),
    ("bound/measured", _number(lambda line: line.reached, 2)),
    ("stall ms/token", _number(lambda line: line.stall)),
    ("runs", lambda line: f"{line.runs}" + (f" ({line.disturbed} disturbed)" if line.disturbed else "")),
)
_BYTES: tuple[Column, ...] = (
    ("device MB/token", _number(lambda line: line.device, 1, 1e-6)),
    ("by mmap's", _number(lambda line: line.device_share, 2)),
    ("missed MB/token", _number(lambda line: line.missed, 1, 1e-6)),
    ("Belady MB/token", _number(lambda line: line.belady, 1, 1e-6)),
    ("misses/token", _number(lambda line: line.misses, 1)),
    ("slots", _number(lambda line: line.slots)),
    ("in-store GB/s", _number(lambda line: line.bandwidth, 2, 1e-9)),
    ("major faults/token", _number(lambda line: line.faults)),
    ("anonymous MiB", _number(lambda line: line.anonymous, 0, 2**-20)),
    ("group peak MiB", _number(lambda line: line.peak, 0, 2**-20)),
)


def _tables(routes: str, config: dict[str, Any], lines: Sequence[Line], wrong: Sequence[str]) -> str:
    times = [c for c in _TIMES if not (wrong and c[0] in ("times faster than mmap", "bound/measured"))]
    return "\n\n".join([f"## {routes.capitalize()} routes", _table(times, lines), _table(_BYTES, lines)])


def _table(columns: Sequence[Column], lines: Sequence[Line]) -> str:
    rows = [["arm", *(name for name, _ in columns)], ["---", *("---:" for _ in columns)]]
    rows += [[ARMS[line.arm].title, *(text(line) for _, text in columns)] for line in lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _reading(config: dict[str, Any]) -> str:
    return _READING.format(peer=ARMS[PEER].title, rule=FOREIGN_LIMIT, raw=config["raw"])


_READING = """## How to read this

Times are medians over the decode tokens of all repeats; ratios are medians of the ratio to {peer}
within the same repeat.
Every run starts from cold files (no page of them in memory, by mincore) in a fresh process and a fresh memory group.
Device bytes are what the kernel read from the device for the process.
The bound is max(bytes the store read / its bandwidth while it decoded, time of the resident arm); it and what it is
compared with are means over the tokens of a run.
Belady is the fewest bytes any policy could read on these routes with these slots.
A run beside others who used more than {rule:.0%} of the processors is repeated once, whatever it showed; then it stays.
The governor of the prefetching arms tries 8 steps without and 8 with prefetch before it decides.
accelerate reads experts that were saved a second time, stacked by layer; that happened before, untimed.
All raw numbers: {raw}."""


def _failures(failed: Sequence[dict[str, Any]]) -> str:
    rows = [f"- {r['arm']}, {r['routes']}, repeat {r['repeat'] + 1}: {r['reason']}" for r in failed]
    return "\n".join(["## Runs that failed", "", *rows])
