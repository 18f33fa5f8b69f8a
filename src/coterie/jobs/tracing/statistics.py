"""Statistics of a model on a calibration text, in one file: the model runs over it under a budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coterie.errors import OptionError, UnsupportedError
from coterie.jobs.locate import locate
from coterie.jobs.output import check_output
from coterie.jobs.running.load import context_of
from coterie.jobs.sheet import Sheet
from coterie.jobs.tracing.calibration import Part, Texts, check_length, open_parts
from coterie.jobs.tracing.statistics_run import Run
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.collect import SAMPLE
from coterie.models.families import check_has_experts
from coterie.models.identity import identity
from coterie.models.prompts import Prompts
from coterie.models.shards import read_config_json
from coterie.models.statistics import Statistics
from coterie.models.stored import as_base
from coterie.surgery.dense import open_dense

__all__ = ["Calibration", "collect_statistics"]

TOKENS = 16384
# tokens of a sequence
_WINDOW = 512

Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What `collect_statistics` made.

    Attributes:
        statistics: also in the file.
        texts: what was read, in words.
        budget: in words.
        hit_rate, bytes_read: of the store; None of a dense model, which is resident whole.
        seconds: it took, loading included.
    """

    statistics: Statistics
    texts: tuple[str, ...]
    budget: str
    hit_rate: float | None
    bytes_read: int | None
    seconds: float

    def sheet(self) -> Sheet:
        """For people."""
        from coterie.jobs.tracing.statistics_sheet import sheet_of

        return sheet_of(self)

    def describe(self) -> str:
        """`sheet` as plain text."""
        return self.sheet().plain()

    def as_record(self) -> dict[str, Any]:
        """The summary, ready for JSON; the tensors are in the file."""
        from coterie.jobs.tracing.statistics_sheet import record_of

        return record_of(self)


def collect_statistics(
    model: str | Path | Checkpoint,
    texts: Texts,
    out: str | Path | None = None,
    memory: str | int | None = None,
    *,
    domains: Mapping[str, Sequence[str | Path]] | None = None,
    tokens: int = TOKENS,
    context: int | None = None,
    sample: int = SAMPLE,
    gradients: bool = False,
    seed: int = 0,
    slots: int | None = None,
    revision: str | None = None,
    say: Say = lambda text: None,
) -> Calibration:
    """Run ``model`` over texts and keep what its experts, or a dense model's channels, did. Exact. Blocks.

    A model with experts runs from the tiered store, in ``memory``; the statistics do not depend on how many experts
    fit. Afterwards every expert is applied to a sample of hidden states, so that unused ones are known too. A dense
    model is resident whole.

    Args:
        model, revision: as of `coterie.load`; also a directory with a dense model.
        texts: UTF-8 files, or name -> text; may be empty where there are domains.
        out: where the statistics go; None: nowhere but into what is returned. What it held stays until the new file
            is whole.
        memory: as of `coterie.load`; what is collected is counted too.
        domains: name of a domain -> files, counted apart beside being counted together.
        tokens: of each text, at most.
        context: tokens of a sequence; default 512, or the model's limit.
        sample: hidden states of each layer that are kept.
        gradients: of a dense model, score channels by activation x gradient too; takes a backward pass.
        seed: of the choice of the sample.
        slots: fewer expert slots than the budget allows (for experiments).
        say: told what is being done.

    Raises:
        PromptError: a text is missing, empty or binary, or all of them together are too short.
        OptionError: a number out of range, ``out`` cannot be written, or gradients of experts are asked for.
        CheckpointError, UnsupportedError, BudgetError: as of `coterie.load`; or the model computes NaN.
    """
    began = time.monotonic()
    _check(tokens, sample, context, seed)
    if out is not None:
        check_output(out)
    checkpoint = _opened(model, revision)
    if gradients and checkpoint.sites:
        raise OptionError(
            "Gradients are collected for dense models, which are resident whole; experts in a store have none. Leave "
            "--gradients out: mixtures of experts are scored by usage, output norm and REAP."
        )
    prompts = Prompts.of(checkpoint.path, checkpoint.context_length)
    parts = open_parts(prompts, texts, domains or {}, tokens)
    check_length(parts, max((site.num_routes for site in checkpoint.sites), default=0))
    run = Run(checkpoint, parts, memory, _window(checkpoint, parts, context), sample, seed, slots, say)
    found = run.experts() if checkpoint.sites else run.dense(gradients)
    about = {
        "model": str(model.path if isinstance(model, Checkpoint) else model), "seed": seed, "sample": sample,
        "family": str(read_config_json(checkpoint.path).get("model_type")), "window": run.window, "batch": run.batch,
        "texts": [{"name": part.text.name, "domain": part.domain, "tokens": len(part.text.ids)} for part in parts],
    }  # fmt: skip
    ours = Statistics(found.sites, found.ffns, identity(checkpoint), about)
    if out is not None:
        ours.save(out)
    shown = tuple(part.text.describe() + (f", domain {part.domain}" if part.domain else "") for part in parts)
    return Calibration(ours, shown, found.budget, found.hit_rate, found.bytes_read, time.monotonic() - began)


def _check(tokens: int, sample: int, context: int | None, seed: int) -> None:
    if tokens < 2 or sample < 1 or seed < 0 or (context is not None and context < 2):
        raise OptionError(
            "Statistics need 2 tokens of each text or more, a context of 2 or more, a sample of 1 or more and a seed "
            f"of 0 or more, not {tokens}, {context}, {sample} and {seed}."
        )


def _opened(model: str | Path | Checkpoint, revision: str | None) -> Checkpoint:
    """The checkpoint; one without experts has no sites."""
    if isinstance(model, Checkpoint):
        return model
    path = locate(model, revision)
    try:
        check_has_experts(as_base(read_config_json(path), str(path)), str(path))
    except UnsupportedError:
        return open_dense(path)
    return open_checkpoint(path)


def _window(checkpoint: Checkpoint, parts: Sequence[Part], context: int | None) -> int:
    """Tokens of a sequence: what was asked for, what the model is made for, and no more than there are."""
    limit = checkpoint.context_length
    context = context_of(checkpoint, context or min(_WINDOW, limit or _WINDOW))
    return min(context, max(len(part.text.ids) for part in parts))
