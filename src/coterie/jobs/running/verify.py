"""Is it true? The model under a budget against the same model without one, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import CheckpointError
from coterie.experts import Compile
from coterie.jobs.locate import locate
from coterie.jobs.running.budget import Budget
from coterie.jobs.running.load import load
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.compat import auto_class, first_inputs, next_inputs, quiet
from coterie.models.families import AT_ODDS
from coterie.models.language import load_host
from coterie.models.linears import use_kernel
from coterie.models.prompts import Prompts
from coterie.models.resident import resident_experts
from coterie.store.machine import available_memory

# largest error relative to the largest logit that rounding in another order of sums explains
ROUNDING = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 4e-2}
TEXT = "A router decides which experts see a token; the experts compute, and their answers are summed."

Say = Callable[[str], None]


@dataclass(frozen=True)
class Difference:
    """The first logit that is not the same: where it is and what both sides say."""

    sequence: int
    position: int
    token: int
    found: float
    expected: float

    def __str__(self) -> str:
        return (
            f"sequence {self.sequence}, position {self.position}, token {self.token}: "
            f"{self.found!r} instead of {self.expected!r}"
        )


@dataclass(frozen=True)
class Rounding:
    """Agreement with transformers: largest error over largest logit, what is allowed, and equal best tokens."""

    error: float
    allowed: float
    same_best: float

    @property
    def holds(self) -> bool:
        return self.error <= self.allowed


@dataclass(frozen=True)
class Report:
    """What `verify` found. ``difference`` is None where every bit agrees.

    ``routed`` says that the model has routers of Coterie: transformers' own cannot load it, and what it is compared
    with is the model that ``AutoModelForCausalLM`` gives after ``import coterie.models``, everything resident.
    """

    budget: Budget
    reference: str
    logits: int
    difference: Difference | None
    transformers: Rounding | None
    transformers_skipped: str
    misses: int
    routed: bool = False

    @property
    def holds(self) -> bool:
        return self.difference is None and (self.transformers is None or self.transformers.holds)

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"budget": self.budget.as_record(), "holds": self.holds}


def verify(
    model: str | Path,
    memory: str | int | None = None,
    *,
    text: str = TEXT,
    new_tokens: int = 8,
    batch: int = 1,
    policy: str = "stale-first",
    prefetch: str = "none",
    slots: int | None = None,
    against_transformers: bool = True,
    revision: str | None = None,
    compile: Compile = "auto",
    say: Say = lambda text: None,
) -> Report:
    """Compare all logits of a prompt and ``new_tokens`` decode steps under ``memory`` with those of the same
    model with everything resident, or with one expert slot and demand loading where that does not fit.

    The reference does not pass through the store where everything fits: its experts are ordinary parameters.
    Blocks for two to three loads of the model, one at a time.

    Raises:
        CoterieError: as `load`.
    """
    checkpoint = open_checkpoint(locate(model, revision))
    ids = _ids(checkpoint, text, batch)
    context = ids.shape[1] + new_tokens
    say("Running under the budget")
    room: dict[str, Any] = {"context": context, "batch": batch, "prefill": ids.shape[1], "all_logits": True}
    room["compile"] = compile
    host = load(checkpoint, memory, policy=policy, prefetch=prefetch, slots=slots, **room)
    found, ids = _run(host, ids, new_tokens)
    budget, misses, compiled = host.coterie.budget, host.coterie.stats().misses, host.coterie.compiled
    host.coterie.close()
    del host
    say("Running the reference")
    expected, reference = _reference(checkpoint, ids, new_tokens, room, compiled)
    report = Report(
        budget, reference, found.numel(), _first_difference(found, expected), None, "not asked for", misses,
        checkpoint.stored is not None,
    )  # fmt: skip
    del expected
    if not against_transformers:
        return report
    if (odds := AT_ODDS.get(checkpoint.config.model_type)) is not None:
        return replace(report, transformers_skipped=odds)
    if not _fits(checkpoint):
        return replace(report, transformers_skipped="the whole model does not fit this machine's free memory")
    say("Running transformers" if checkpoint.stored is None else "Running the model as import coterie.models loads it")
    try:
        theirs = _transformers(checkpoint, ids, new_tokens)
    except (ImportError, RuntimeError, ValueError) as error:  # quantised: it wants a package
        reason = " ".join(str(error).split())
        return replace(report, transformers_skipped=f"transformers could not load the checkpoint: {reason}")
    return replace(report, transformers=_rounding(found, theirs))


def _ids(checkpoint: Checkpoint, text: str, batch: int) -> Tensor:
    """[B, N]: rotations of one text, so that the sequences of a batch differ; seeded ids without a tokenizer."""
    try:
        ids = Prompts.of(checkpoint.path, checkpoint.context_length).encode(text, raw=True)[0]
    except CheckpointError:
        ids = torch.randint(checkpoint.vocab_size, (24,), generator=torch.Generator().manual_seed(0))
    return torch.stack([ids.roll(shift) for shift in range(batch)])


@torch.no_grad()
def _run(host: Any, ids: Tensor, steps: int, *, forced: bool = False) -> tuple[Tensor, Tensor]:
    """Logits [B, N + steps, V] of a prefill and ``steps`` decode steps, and the ids with what was chosen.

    ``forced`` says that the last ``steps`` of ``ids`` are the answer: they are fed instead of being chosen.
    """
    prompt, answer = (ids[:, : ids.shape[1] - steps], ids[:, ids.shape[1] - steps :]) if forced else (ids, None)
    out = host(**first_inputs(host, prompt))
    logits, fed = [out.logits], [prompt]
    for step in range(steps):
        fed.append(out.logits[:, -1:].argmax(-1) if answer is None else answer[:, step, None])
        out = host(**next_inputs(host, out, fed[-1]))
        logits.append(out.logits)
    return torch.cat(logits, 1), torch.cat(fed, 1)


def _reference(
    checkpoint: Checkpoint, ids: Tensor, new_tokens: int, room: dict[str, Any], compiled: bool
) -> tuple[Tensor, str]:
    if _fits(checkpoint):
        host = load_host(checkpoint, resident_experts)
        use_kernel(host, compiled)
        return _run(host, ids, new_tokens, forced=True)[0], "everything resident"
    host = load(checkpoint, policy="lru", slots=1, **room)
    logits, _ = _run(host, ids, new_tokens, forced=True)
    host.coterie.close()
    return logits, "one expert slot, demand only"


def _fits(checkpoint: Checkpoint) -> bool:
    """With a fifth to spare: transformers holds some experts twice while it stacks them."""
    return 1.2 * (checkpoint.dense_bytes + checkpoint.float_bytes) < available_memory()


def _first_difference(found: Tensor, expected: Tensor) -> Difference | None:
    if torch.equal(found, expected):
        return None
    sequence, position, token = torch.nonzero(found != expected)[0].tolist()
    at = (sequence, position, token)
    return Difference(*at, float(found[at]), float(expected[at]))


def _transformers(checkpoint: Checkpoint, ids: Tensor, new_tokens: int) -> Tensor:
    # a quantised checkpoint's own config says how to read it, which ours no longer does
    given = {} if checkpoint.quantization else {"config": checkpoint.config}
    with quiet():
        model = auto_class(checkpoint.config).from_pretrained(checkpoint.path, dtype=checkpoint.compute_dtype, **given)
    model.eval()
    return _run(model, ids, new_tokens, forced=True)[0]


def _rounding(found: Tensor, theirs: Tensor) -> Rounding:
    scale = theirs.abs().max().float().clamp_min(1e-12)
    error = float((found.float() - theirs.float()).abs().max() / scale)
    same = float((found.argmax(-1) == theirs.argmax(-1)).float().mean())
    return Rounding(error, ROUNDING.get(found.dtype, 1e-3), same)
