"""A trace of a text: the model runs over it under a budget, and every routing decision is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.jobs.locate import locate
from coterie.jobs.output import check_output
from coterie.jobs.running.load import context_of, load
from coterie.jobs.tracing.reading import open_texts
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.compat import takes
from coterie.models.prompts import Prompts
from coterie.models.trace import trace
from coterie.routing import RoutePlan
from coterie.units import format_bytes

TOKENS = 1024

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Record:
    """What `record` made.

    Attributes:
        plan: one sequence per piece of text that fits the context.
        texts: what was read, in words.
        budget: in words.
        hit_rate, bytes_read: of the store.
    """

    plan: RoutePlan
    texts: tuple[str, ...]
    budget: str
    hit_rate: float
    bytes_read: int

    def as_record(self) -> dict[str, Any]:
        return {
            "tokens": self.plan.num_items, "sites": list(self.plan.sites), "texts": list(self.texts),
            "budget": self.budget, "hit_rate": self.hit_rate, "bytes_read": self.bytes_read,
        }  # fmt: skip

    def describe(self) -> str:
        """For people."""
        read = f"hits {self.hit_rate:.0%}, read {format_bytes(self.bytes_read)}"
        return "\n".join(
            [*self.texts, f"{self.plan.num_items} tokens through {len(self.plan.sites)} layers with experts; {read}"]
        )


def record(
    model: str | Path | Checkpoint,
    texts: Sequence[str | Path],
    out: str | Path,
    memory: str | int | None = None,
    *,
    tokens: int = TOKENS,
    context: int | None = None,
    revision: str | None = None,
    say: Say = lambda text: None,
) -> Record:
    """Run ``model`` over text files and write where every token went to ``out``, as `RoutePlan.save` does.

    Exact: the routes do not depend on the budget. Blocks. What ``out`` held stays until the new trace is whole.

    Args:
        model, memory, revision: as `load`.
        texts: UTF-8 files.
        tokens: of each text, at most. Longer ones than the context are read as several sequences.
        context: tokens of a sequence; default 2048 or the model's limit.

    Raises:
        PromptError: a text is missing, empty or binary.
        OptionError: ``out`` cannot be written, or ``tokens`` is below two.
        CoterieError: as `load`.
    """
    if tokens < 2:
        raise OptionError(f"A trace needs two tokens of each text at least, not {tokens}.")
    target = check_output(out)
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(locate(model, revision))
    context = context_of(checkpoint, context)
    read = open_texts(texts, Prompts.of(checkpoint.path, checkpoint.context_length), tokens)
    window = min(context, max(len(text.ids) for text in read))
    say("Loading")
    host = load(checkpoint, memory, context=window)
    try:
        with trace(host) as recording:
            for text in read:
                for number, piece in enumerate(text.ids.split(window)):
                    say(f"Reading {text.name}: token {number * window} of {len(text.ids)}")
                    _read(host, piece[None])
        stats, budget = host.coterie.stats(), host.coterie.budget.describe()
    finally:
        host.coterie.close()
    plan = recording.plan()
    plan.save(target)
    return Record(plan, tuple(text.describe() for text in read), budget, stats.hit_rate, stats.bytes_read)


@torch.no_grad()
def _read(host: Any, ids: Tensor) -> None:
    """Run over ``ids`` [1, N] from an empty cache, piece by piece as `generate` reads a prompt."""
    cache, few = None, {"logits_to_keep": 1} if takes(host, "logits_to_keep") else {}
    for piece in ids.split(host.coterie.prefill, dim=1):
        cache = host(input_ids=piece, past_key_values=cache, use_cache=True, **few).past_key_values
