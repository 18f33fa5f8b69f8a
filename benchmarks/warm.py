"""What does a store that begins with the most used experts save, in reads of the first tokens?

    python benchmarks/warm.py

Counted, not timed: the pocket model, statistics of every other page of docs/, requests cut from the pages between. The
report goes to stdout and to benchmarks/results/. Required: the prompt reads fewer experts than from an empty store with
every policy and number of slots, and the logits have the same bits.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import fmean

import torch
from offloading.facts import all_facts, hardware_name
from torch import Tensor

from coterie.jobs import collect_statistics, load, locate
from coterie.models.prompts import Prompts

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
POLICIES, SLOTS, PROMPTS = ("stale-first", "lru", "lfu"), (32, 64), (1, 32)
REQUESTS, ANSWER, EARLY = 8, 64, 8
_STATISTICS_TOKENS = 2048


@dataclass(frozen=True)
class Count:
    """Experts read until the prompt is read, the answer has `EARLY` tokens, and it has `ANSWER`; means of requests."""

    prompt: float
    early: float
    whole: float

    def row(self) -> str:
        """For the table."""
        return f"{self.prompt:.1f}, {self.early:.1f}, {self.whole:.1f}"


def main() -> None:
    """Count, print, write."""
    facts = all_facts(RESULTS)
    with tempfile.TemporaryDirectory() as scratch:
        text = render(rows(Path(scratch)), facts)
    stem = f"warm_{hardware_name(facts['hardware'])}_{date.today().isoformat()}"
    (RESULTS / f"{stem}.md").write_text(text)
    print(text)


def rows(scratch: Path) -> list[tuple[int, int, str, Count, Count, bool]]:
    """(tokens of the prompt, slots, policy, from an empty store, warm, same bits)."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    told = scratch / "stats.safetensors"
    collect_statistics("pocket", pages[::2], told, tokens=_STATISTICS_TOKENS)
    asked = "\n".join(page.read_text(encoding="utf-8") for page in pages[1::2])
    ids = Prompts.of(locate("pocket"), None).encode(asked, raw=True)[0]
    found = []
    for prompt in PROMPTS:
        for slots in SLOTS:
            for policy in POLICIES:
                cold, bits = count(ids, prompt, policy, slots, None)
                warm, same = count(ids, prompt, policy, slots, told)
                found.append((prompt, slots, policy, cold, warm, torch.equal(bits, same)))
    return found


def count(ids: Tensor, prompt: int, policy: str, slots: int, statistics: Path | None) -> tuple[Count, Tensor]:
    """Reads of `REQUESTS` requests, a fresh store each, and all their logits."""
    counts, logits = [], []
    step = (len(ids) - prompt - ANSWER) // REQUESTS
    for start in range(0, step * REQUESTS, step):
        host = load("pocket", context=512, policy=policy, slots=slots, statistics=statistics, compile=False)
        misses = []
        for each in answered(host, ids[start : start + prompt + ANSWER], prompt):
            misses.append(host.coterie.stats().misses)
            logits.append(each)
        counts.append((misses[0], misses[EARLY], misses[ANSWER]))
        host.coterie.close()
    return Count(*(fmean(column) for column in zip(*counts, strict=True))), torch.cat(logits)


@torch.no_grad()
def answered(host: object, ids: Tensor, prompt: int) -> Iterator[Tensor]:
    """Logits after the prompt and after every token of the answer, which is given."""
    out = host(input_ids=ids[None, :prompt], use_cache=True)  # type: ignore[operator]
    yield out.logits[:, -1]
    for token in ids[prompt:]:
        out = host(input_ids=token[None, None], past_key_values=out.past_key_values, use_cache=True)  # type: ignore[operator]
        yield out.logits[:, -1]


def render(found: list[tuple[int, int, str, Count, Count, bool]], facts: dict[str, dict[str, object]]) -> str:
    """The report, with a plain pass or fail per required line."""
    fewer = all(warm.prompt < cold.prompt for *_, cold, warm, _ in found)
    same = all(bits for *_, bits in found)
    table = [
        f"| {prompt} | {slots} of 128 | {policy} | {cold.row()} | {warm.row()} | {1 - warm.prompt / cold.prompt:.0%}, "
        f"{1 - warm.early / cold.early:.0%}, {1 - warm.whole / cold.whole:.0%} |"
        for prompt, slots, policy, cold, warm, _ in found
    ]
    return "\n".join(
        [
            "# Beginning with the most used experts",
            "",
            f"- Versions: {', '.join(f'{name} {value}' for name, value in facts['versions'].items())}",
            f"- Commit {facts['repository']['commit']}, working tree "
            f"{'clean' if facts['repository']['clean'] else 'NOT clean'}",
            f"- Pocket model; statistics of {_STATISTICS_TOKENS} tokens at most of each of every other page of docs/; "
            f"{REQUESTS} requests from the pages between, {ANSWER} tokens after the prompt",
            "",
            f"- {'pass' if fewer else 'FAIL'}: the prompt always reads fewer experts than from an empty store",
            f"- {'pass' if same else 'FAIL'}: the same bits",
            "",
            f"Experts read: of the prompt, with {EARLY} more tokens, with {ANSWER} more; reads before the request left "
            "out.",
            "",
            "| prompt | slots | policy | empty | warm | saved |",
            "|---|---|---|---|---|---|",
            *table,
            "",
        ]
    )


if __name__ == "__main__":
    main()
