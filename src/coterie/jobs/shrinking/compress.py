"""Experts as low-rank factors with a few rows of what those miss: a checkpoint that is smaller and computes less."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from coterie.errors import OptionError
from coterie.jobs.finishing.surgery_report import SurgeryReport, surgery_report
from coterie.jobs.finishing.surgery_result import SurgeryResult
from coterie.jobs.sheet import Sheet
from coterie.jobs.shrinking.rank_budget import rank_plan, target_bytes
from coterie.jobs.shrinking.small_sheet import expert_fact, factors_sheet, layers_pictures
from coterie.jobs.shrinking.source import Shrinking, Texts, shrinking
from coterie.models.checkpoint import Checkpoint, open_checkpoint
from coterie.models.statistics import Statistics
from coterie.ops.structure import UNITS
from coterie.surgery.factorize import LayerFactors, factorize_layer
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.method import Method
from coterie.surgery.moments import InputMoments
from coterie.surgery.rewrite import rewrite

__all__ = ["SCORES", "Compressed", "compress"]

SCORES = ("energy", "gradient")
PAPER = "Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy, arXiv 2310.01334"

Say = Callable[[str], None]
Show = Callable[[Sheet], None]
Masks = Mapping[str, Mapping[str, Sequence[Tensor]]]


@dataclass(frozen=True, eq=False)
class Compressed(SurgeryResult):
    """What `compress` made.

    Attributes:
        report: the new checkpoint, sizes before and after, of each layer ranks, share of S and errors, and what a text
            says.
    """

    report: SurgeryReport

    def _pictures(self) -> Sequence[str]:
        return layers_pictures(self.report.layers, "ranks", "rank")


def compress(
    model: str | Path | Checkpoint, out: str | Path, *, rank: int | None = None, size: str | int | None = None,
    keep: float = 0.0, unit: str = "row", score: str = "energy", merge_first: int | None = None,
    statistics: str | Path | Statistics | None = None, texts: Texts = (), memory: str | int | None = None,
    skip_layers: Sequence[int] = (), revision: str | None = None, resume: bool = False,
    say: Say = lambda text: None, show: Show = lambda sheet: None,
) -> Compressed:  # fmt: skip
    """Write ``model`` with its experts' matrices as U V + S to ``out``. Lossy. Blocks.

    Stored and computed as factors. U V is the best product of its rank, on the inputs that the statistics saw where
    there are some; of S = W - U V a share of rows, columns or hidden neurons stays. A matrix whose factors would be no
    smaller stays whole. One layer is in memory at a time.

    Args:
        model, out, statistics, texts, memory, skip_layers, revision, resume, say, show: as of
            `coterie.jobs.merge`; without statistics and texts all experts and inputs count alike.
        rank: of every matrix; or
        size: of the whole model on disk, as a share ("50%") or bytes ("6GiB"): ranks go where they keep most of the
            outputs, experts that are used more before others. Matrices of other dimensions compare by numbers.
        keep: share of the units of S that stays.
        unit: "row" (outputs), "col" (inputs) or "neuron" (hidden neurons of an expert, in all its matrices).
        score: which units stay: "energy" (what they add to the output, of each matrix the same share) or "gradient"
            (MC-SMoE's: weight times gradient on the texts, over all layers together; the model in memory, as floats).
        merge_first: merge experts down to so many in a layer before (M-SMoE).

    Raises:
        OptionError: neither a rank nor a size or both, a size out of reach, or as of `coterie.jobs.merge`.
        UnsupportedError: a family whose experts end in a norm.
        BudgetError: gradients are asked for and the model does not fit the memory.
        CheckpointError: the source is damaged or holds NaN, or the disk is full.
    """
    _check(rank, size, keep, unit, score, texts)
    found = shrinking(
        model, out, statistics=statistics, texts=texts, memory=memory, skip_layers=skip_layers, merge_first=merge_first,
        revision=revision, resume=resume, say=say,
    )  # fmt: skip
    ranks = _ranks(found, rank, size, keep, unit, say)
    masks: Masks = {}
    if score == "gradient":
        from coterie.jobs.shrinking.prune_by_gradient import surviving_units

        masks = surviving_units(found, ranks, keep, unit, texts, memory, Path(out).expanduser(), say)
    about = Method(
        "compress", "lossy", _summary(rank, size, keep, unit, merge_first), PAPER, found.facts(),
        _given(rank=rank, size=size, keep=keep or None, unit=unit if keep else None, score=score if keep else None,
               merge_first=merge_first, skip_layers=list(skip_layers) or None),
    )  # fmt: skip
    made = rewrite(
        found.checkpoint, out, _edit(found, ranks, masks, keep, unit), about=about, resume=resume,
        progress=lambda what, done, of: say(f"{what}: {done} of {of} layers"),
    )  # fmt: skip
    after = open_checkpoint(made.path)
    show(factors_sheet(made.layers, found.chosen, expert_fact(found.checkpoint, after)))
    report = surgery_report(found.checkpoint, made, about, texts=texts, memory=memory, say=say)
    show(report.sheet())
    return Compressed(report)


def _edit(
    found: Shrinking, ranks: Mapping[str, Mapping[str, Sequence[int]]], masks: Masks, keep: float, unit: str
) -> Callable[[LayerExperts], NewLayer]:
    def edit(layer: LayerExperts) -> NewLayer:
        if not found.changes(layer):
            return layer.unchanged()
        name, ready = layer.site.name, found.prepared(layer)
        how = LayerFactors(ranks[name], keep, unit, masks.get(name, {}))
        # units were chosen by gradients for the plain product, so it must be the plain product that they belong to
        moments = InputMoments(ready) if masks else found.moments(ready)
        return factorize_layer(ready, how, moments)

    return edit


def _ranks(
    found: Shrinking, rank: int | None, size: str | int | None, keep: float, unit: str, say: Say
) -> dict[str, dict[str, list[int]]]:
    """Site -> matrix -> rank of each expert."""
    if size is not None:
        return rank_plan(found, target_bytes(found.checkpoint, size), keep, unit, say)
    assert rank is not None
    plans = {}
    for site in found.chosen:
        count = len(found.shares(found.read(site))) if found.merging is not None else site.num_experts
        names = ("gate_proj", "up_proj", "down_proj") if site.shape.gated else ("up_proj", "down_proj")
        plans[site.name] = {name: [rank] * count for name in names}
    return plans


def _check(
    rank: int | None, size: str | int | None, keep: float, unit: str, score: str, texts: Texts
) -> None:  # fmt: skip
    if (rank is None) == (size is None):
        raise OptionError("Say how small, one of the two: --rank 32 (of every matrix), or --size 50% (of the model).")
    if rank is not None and rank < 1:
        raise OptionError(f"A rank is 1 or more, not {rank}.")
    if not 0 <= keep <= 1:
        raise OptionError(f"The share of S that is kept lies between 0 and 1, not {keep}. Try 0.1.")
    if unit not in UNITS:
        raise OptionError(f"What is kept of S is one of: {', '.join(UNITS)}; not {unit!r}.")
    if score not in SCORES:
        raise OptionError(f"Units of S are chosen by one of: {', '.join(SCORES)}; not {score!r}.")
    if score == "gradient" and (not texts or not 0 < keep < 1):
        raise OptionError("Scores by gradient need a text to learn from and a share to keep: --text FILE --keep 0.1")


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _summary(rank: int | None, size: str | int | None, keep: float, unit: str, merge_first: int | None) -> str:
    units = {"row": "rows", "col": "columns", "neuron": "hidden neurons"}[unit]
    rest = f", with {keep:.3g} of the {units} of what those miss" if keep else ""
    how = f"of rank {rank}" if rank is not None else f"of ranks that make the model {size}"
    merged = "" if merge_first is None else f"Experts were merged, to {merge_first} in a layer on average. "
    return f"{merged}The matrices of its experts are products of two thin ones {how}{rest}."
