"""Several models of one architecture as one: the weighted mean of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coterie.jobs.finishing.surgery_report import SurgeryReport, surgery_report
from coterie.jobs.finishing.surgery_result import SurgeryResult
from coterie.jobs.locate import locate
from coterie.jobs.sheet import Facts, Sheet, Table
from coterie.models.checkpoint import Checkpoint
from coterie.surgery.average import average, shares_of
from coterie.surgery.card import source_name
from coterie.surgery.method import Method
from coterie.surgery.opened import open_any
from coterie.surgery.writer import refuse_existing

__all__ = ["Averaged", "average_models"]

PAPER = "Model soups: averaging weights of multiple fine-tuned models improves accuracy, arXiv 2203.05482"

Say = Callable[[str], None]
Show = Callable[[Sheet], None]


@dataclass(frozen=True, eq=False)
class Averaged(SurgeryResult):
    """What `average_models` made.

    Attributes:
        report: the new checkpoint, sizes, perplexity of the base and of it where there were texts.
        shares: name of each model -> what it counts, the base first.
    """

    report: SurgeryReport = field(repr=False)
    shares: Sequence[tuple[str, float]]

    def _facts(self) -> Mapping[str, Any]:
        return {"shares": [[name, share] for name, share in self.shares]}


def average_models(
    base: str | Path, others: Mapping[str, float] | Sequence[str | Path], out: str | Path, *, weight: float = 1.0,
    normalise: bool = True, texts: Sequence[str | Path] | Mapping[str, str] = (), memory: str | int | None = None,
    revision: str | None = None, resume: bool = False, say: Say = lambda text: None,
    show: Show = lambda sheet: None,
) -> Averaged:  # fmt: skip
    """Write the weighted mean of ``base`` and ``others``, tensor by tensor, to ``out``. Lossy. Blocks.

    All are of one architecture, dense or with experts, and of one tokenizer. Sums are in float32, the result has the
    base's types, names and tokenizer. A few megabytes of each are in memory at a time.

    Args:
        base, revision: a directory with a checkpoint, or a hub name.
        others: the other models; or model -> weight.
        out: the directory to make; there when it is whole, and not before.
        weight: of the base.
        normalise: divide weights by their sum.
        texts, memory: what base and result are to foretell, files or name -> text; in how much memory.
        resume: go on with unfinished work.
        say, show: told what is being done; given sheets for people.

    Raises:
        OptionError: ``out`` exists, weights that are no numbers or sum to 0, or models that are not alike.
        UnsupportedError: a quantised model, or experts stored in a form of their own.
        CheckpointError: a checkpoint is damaged or holds NaN, or the disk is full.
        PromptError: a text is missing, empty, binary or too short.
    """
    refuse_existing(Path(out).expanduser(), resume)
    given = [float(each) for each in others.values()] if isinstance(others, Mapping) else [1.0] * len(others)
    shares = shares_of([weight, *given], normalise)
    models = [open_any(locate(base, revision)), *(open_any(locate(other)) for other in others)]
    about = _about(models, shares, normalise)
    made = average(
        models, shares, out, about=about, resume=resume,
        progress=lambda what, done, of: say(f"{what}: {done} of {of} tensors"),
    )  # fmt: skip
    show(_sheet(models, shares))
    report = surgery_report(models[0], made, about, texts=texts, memory=memory, say=say)
    show(report.sheet())
    return Averaged(report, list(zip(map(source_name, models), shares, strict=True)))


def _about(models: Sequence[Checkpoint], shares: Sequence[float], normalise: bool) -> Method:
    weights = ", ".join(f"{source_name(model)} {share:.4g}" for model, share in zip(models, shares, strict=True))
    summary = f"Every weight is the weighted mean of those of {len(models)} models."
    return Method("merge", "lossy", summary, PAPER, {}, {"weights": weights, "normalised": normalise})


def _sheet(models: Sequence[Checkpoint], shares: Sequence[float]) -> Sheet:
    rows = [(source_name(model), f"{share:.4g}") for model, share in zip(models, shares, strict=True)]
    table = Table("Models", ("model", "weight"), rows, frozenset({1}))
    facts = [("else", f"config, tokenizer and types are those of {source_name(models[0])}")]
    return Sheet(f"Mean of {len(models)} models", [table, Facts("", facts)])
