"""Does `coterie plan` foretell what a run reads?

    python benchmarks/forecast.py [--work FOLDER]

The pocket model and a 1 GB checkpoint with random weights, written to FOLDER, at three budgets and with every policy.
Required: bytes per token within 30 % of what the store counted, or within 1 % of what a token without any resident
expert reads, when routes are uniform or the trace is of the text itself. What the trace of another text is worth, and
what the forecast of speed is worth, is shown and not judged.
The report goes to stdout and to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
from offloading.checkpoint import make_checkpoint
from offloading.counters import FOREIGN_LIMIT, ProcessorTime
from offloading.facts import all_facts, hardware_name
from offloading.routes import ForcedRoutes, make_routes
from offloading.scales import Scale
from torch import Tensor

from coterie.jobs.locate import locate
from coterie.jobs.running.budget import planned_budget
from coterie.jobs.running.load import PREFILL, blobs_of, load
from coterie.jobs.running.plan import Plan, plan
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.footprint import footprint
from coterie.models.prompts import Prompts
from coterie.models.trace import trace
from coterie.routing import RoutePlan
from coterie.store import POLICIES
from coterie.units import format_bytes

ALLOWED, NOTHING = 0.3, 0.01
PROMPT, DECODE = 96, 64
SHARES = (0.2, 0.5, 0.8)  # of the experts resident
RESULTS = Path(__file__).resolve().parent / "results"
SYNTHETIC = Scale("forecast", 8, 32, 4, 1024, 640, 8192, 16, 3, 0)
# random attention drowns random embeddings and sends all tokens to the same experts: louder ones keep them apart
LOUDER = 50
# two texts of one kind for the pocket model: routes are recorded on one and foretell the other
DOCS = Path(__file__).resolve().parents[1] / "docs"
TEXTS = (DOCS / "run.md", DOCS / "store.md")
KNOWN, ITSELF, UNIFORM = "own, foretold by a text of its kind", "own, foretold by itself", "uniform, forced"
JUDGED = (ITSELF, UNIFORM)


@dataclass(frozen=True)
class Case:
    """One run beside its forecast. Bytes per token of the answer; hits and speed of the same tokens.

    ``all_missing`` is what a token reads of which no expert is resident; ``foreign_share`` is what other programs took
    of the machine meanwhile.
    """

    model: str
    routes: str
    policy: str
    memory: int
    slots: int
    forecast: float
    measured: float
    all_missing: float
    prompt_forecast: float
    prompt_measured: float
    hits_forecast: float
    hits_measured: float
    speed_forecast: float
    speed_measured: float
    foreign_share: float

    @property
    def error(self) -> float:
        """Of the forecast, relative to what was measured; 0 where both read nothing."""
        if self.measured == 0:
            return 0.0 if self.forecast == 0 else float("inf")
        return self.forecast / self.measured - 1

    @property
    def holds(self) -> bool:
        close = abs(self.forecast - self.measured) <= NOTHING * self.all_missing
        return close or abs(self.error) <= ALLOWED


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("/tmp/coterie-forecast"), help="where 1 GB is written")
    work = parser.parse_args().work
    work.mkdir(parents=True, exist_ok=True)
    models = {"pocket": open_checkpoint(locate("pocket")), "1 GB": open_checkpoint(make_checkpoint(work, SYNTHETIC))}
    cases = [case for name, checkpoint in models.items() for case in run_model(name, checkpoint)]
    facts = all_facts(work)
    stem = f"forecast_{hardware_name(facts['hardware'])}_{date.today().isoformat()}"
    text = render(cases, facts)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.md").write_text(text)
    lines = [{"facts": facts}, *(asdict(case) for case in cases)]
    (RESULTS / f"{stem}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(text)


def run_model(name: str, checkpoint: Checkpoint) -> Iterator[Case]:
    """Every budget, policy and kind of routes of one model."""
    known, new = texts_of(checkpoint)
    recorded = {KNOWN: record(checkpoint, known), ITSELF: record(checkpoint, new)}
    for share in SHARES:
        slots = int(share * checkpoint.num_experts)
        for policy in POLICIES:
            forecasts = {kind: forecast(checkpoint, slots, one) for kind, one in recorded.items()}
            measured = measure(checkpoint, new, slots, policy)
            for kind, one in forecasts.items():
                yield case_of(name, kind, policy, one, measured)
            uniform = measure(checkpoint, new, slots, policy, forced=True)
            yield case_of(name, UNIFORM, policy, forecast(checkpoint, slots, None), uniform)


def texts_of(checkpoint: Checkpoint) -> tuple[Tensor, Tensor]:
    """Two requests [1, PROMPT + DECODE] of tokens: real text where there is a tokenizer, else random tokens."""
    length = PROMPT + DECODE
    if (checkpoint.path / "tokenizer.json").exists():
        prompts = Prompts.of(checkpoint.path, None)
        return tuple(prompts.encode(text.read_text()[:4000], raw=True)[:, :length] for text in TEXTS)  # type: ignore[return-value]
    draw = torch.Generator().manual_seed(1)
    return tuple(torch.randint(2, checkpoint.vocab_size, (1, length), generator=draw) for _ in range(2))  # type: ignore[return-value]


@torch.no_grad()
def record(checkpoint: Checkpoint, ids: Tensor) -> RoutePlan:
    """The model's own routes of ``ids``."""
    model = _loaded(checkpoint, context=ids.shape[1])
    with trace(model) as recording:
        model(ids, logits_to_keep=1)
    model.coterie.close()
    return recording.plan()


def forecast(checkpoint: Checkpoint, slots: int, routes: RoutePlan | None) -> Plan:
    """What `plan` says to a budget of exactly ``slots``."""
    context = PROMPT + DECODE
    slot_bytes = max(blob.slot_bytes for blob in blobs_of(checkpoint).values())
    need = planned_budget(checkpoint, footprint(checkpoint, 1, context, chunk=PREFILL, all_logits=False), 1, slot_bytes)
    memory = need.fixed + slots * slot_bytes
    return plan(checkpoint, memory, context=context, prompt=PROMPT, trace=routes)


@torch.no_grad()
def measure(checkpoint: Checkpoint, ids: Tensor, slots: int, policy: str, forced: bool = False) -> dict[str, float]:
    """Run prompt and answer, token by token, and read the store's counters."""
    model = _loaded(checkpoint, context=ids.shape[1], slots=slots, policy=policy)
    if forced:
        ForcedRoutes(model, make_routes("uniform", _scale(checkpoint), ids.shape[1], seed=3))
    store = model.coterie.store
    cache = model(ids[:, :PROMPT], use_cache=True, logits_to_keep=1).past_key_values
    prompt = store.stats().bytes_read
    store.reset_stats()
    began, before = time.perf_counter(), ProcessorTime.now()
    for token in ids[0, PROMPT:]:
        model(token[None, None], past_key_values=cache, logits_to_keep=1).logits.argmax().item()
    seconds, stats, steps = time.perf_counter() - began, store.stats(), ids.shape[1] - PROMPT
    model.coterie.close()
    return {
        "prompt": prompt, "token": stats.bytes_read / steps, "hits": stats.hit_rate, "speed": steps / seconds,
        "foreign": ProcessorTime.now().foreign_share(before),
    }  # fmt: skip


def _loaded(checkpoint: Checkpoint, **options: Any) -> Any:
    model = load(checkpoint, **options)
    if checkpoint.config.vocab_size == SYNTHETIC.vocab:
        model.get_input_embeddings().weight.mul_(LOUDER)
    return model


def _scale(checkpoint: Checkpoint) -> Scale:
    site = checkpoint.sites[0]
    return Scale("routes", len(checkpoint.sites), site.num_experts, site.top_k, 0, 0, 0, 0, 0, 0)


def case_of(name: str, routes: str, policy: str, foretold: Plan, measured: dict[str, float]) -> Case:
    """A forecast and a run of the same budget."""
    one = next(each for each in foretold.forecasts if each.policy == policy)
    return Case(
        name, routes, policy, foretold.budget.total, one.slots, one.bytes_per_token, measured["token"],
        _all_missing(foretold), one.prefill_bytes, measured["prompt"], one.hit_rate, measured["hits"],
        one.tokens_per_second, measured["speed"], measured["foreign"],
    )  # fmt: skip


def _all_missing(foretold: Plan) -> float:
    return foretold.model.layers * foretold.model.top_k * foretold.budget.slot_bytes


def render(cases: list[Case], facts: dict[str, dict[str, Any]]) -> str:
    """The report, with a plain pass or fail."""
    judged = [case for case in cases if case.routes in JUDGED]
    failed = [case for case in judged if not case.holds]
    far = [case for case in judged if abs(case.forecast - case.measured) > NOTHING * case.all_missing]
    worst = max(far or judged, key=lambda case: abs(case.error))
    hardware = facts["hardware"]
    head = [
        "# Forecast: what coterie plan foretells, and what is read",
        "",
        f"- Machine: {hardware['processor']}, {hardware['cores']} cores, {hardware['file_system']}, "
        f"Linux {hardware['kernel']}; torch uses {torch.get_num_threads()} thread(s)",
        f"- Versions: {', '.join(f'{k} {v}' for k, v in facts['versions'].items())}",
        f"- Commit {facts['repository']['commit']}, working tree "
        f"{'clean' if facts['repository']['clean'] else 'NOT clean'}",
        f"- A prompt of {PROMPT} tokens, then {DECODE} more; greedy, batch 1; bytes with the alignment of direct reads",
        "",
        f"- {'FAIL' if failed else 'pass'}: {len(judged) - len(failed)} of {len(judged)} judged forecasts of bytes per "
        f"token are within {ALLOWED:.0%}, or within {NOTHING:.0%} of what a token without any resident expert reads",
        f"- The worst that is not next to nothing: {worst.error:+.1%} ({worst.model}, {worst.routes}, {worst.policy}, "
        f"{worst.slots} slots)",
        "- Not judged: what a trace foretells of another text of its kind, and speeds",
        f"- The 1 GB model has random weights, embeddings {LOUDER} times louder than the rest",
        "",
        "| model | routes | policy | slots | foretold per token | measured | error | prompt foretold | measured | "
        "hits foretold | measured | tokens/s foretold | measured |",
        "|" + "---|" * 13,
    ]
    return "\n".join([*head, *map(_row, cases), "", *_speeds(cases), ""])


def _row(case: Case) -> str:
    cells = [
        case.model, case.routes, case.policy, str(case.slots), format_bytes(case.forecast), format_bytes(case.measured),
        f"{case.error:+.1%}", format_bytes(case.prompt_forecast), format_bytes(case.prompt_measured),
        f"{case.hits_forecast:.0%}", f"{case.hits_measured:.0%}", f"{case.speed_forecast:.1f}",
        f"{case.speed_measured:.1f}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _speeds(cases: list[Case]) -> list[str]:
    quiet = [case for case in cases if case.foreign_share <= FOREIGN_LIMIT]
    text = f"Of {len(cases)} runs {len(quiet)} had the machine to themselves (others took {FOREIGN_LIMIT:.0%} at most)."
    if not quiet:
        return [f"{text} The speeds above say nothing."]
    ratios = sorted(case.speed_forecast / case.speed_measured for case in quiet)
    return [
        f"{text} Speeds foretold for them are {ratios[0]:.2f} to {ratios[-1]:.2f} times those measured, "
        f"{ratios[len(ratios) // 2]:.2f} in the middle."
    ]


if __name__ == "__main__":
    main()
