"""Dense models made into a mixture: copies of one, or an expert of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from coterie.errors import OptionError
from coterie.jobs.finishing.surgery_report import SurgeryReport, surgery_report
from coterie.jobs.finishing.surgery_result import SurgeryResult
from coterie.jobs.growing.split_sheet import kept_sheet
from coterie.jobs.growing.upcycle_gates import Gate, first_gates
from coterie.jobs.growing.upcycle_plan import ExpertSource, UpcyclePlan
from coterie.jobs.growing.upcycle_sheet import experts_sheet
from coterie.jobs.locate import locate
from coterie.jobs.sheet import Sheet
from coterie.surgery.dense import DenseCheckpoint, DenseLayer, open_dense, read_ffn
from coterie.surgery.from_dense import from_dense
from coterie.surgery.method import Method
from coterie.surgery.mixture import mixture_family
from coterie.surgery.new_mixture import NewMixture
from coterie.surgery.upcycle import copies, scaled_down, side_by_side
from coterie.surgery.writer import refuse_existing

__all__ = ["Upcycled", "upcycle"]

PAPER = "Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints, arXiv 2212.05055"
# what models that share their attention have in common
_SAME = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act")

Say = Callable[[str], None]
Show = Callable[[Sheet], None]


@dataclass(frozen=True, eq=False)
class Upcycled(SurgeryResult):
    """What `upcycle` or `coterie.jobs.add_expert` made.

    Attributes:
        report: the new checkpoint, sizes before and after, perplexity where there were texts.
        exactness: in words: what of the function before is kept.
        notes: what a user should know, a sentence each.
    """

    report: SurgeryReport = field(repr=False)
    exactness: str
    notes: tuple[str, ...] = ()

    def _facts(self) -> Mapping[str, Any]:
        return {"exactness": self.exactness, "notes": list(self.notes)}


def upcycle(
    plan: UpcyclePlan, out: str | Path, *, family: str | None = None,
    texts: Sequence[str | Path] | Mapping[str, str] = (), memory: str | int | None = None, revision: str | None = None,
    resume: bool = False, say: Say = lambda text: None, show: Show = lambda sheet: None,
) -> Upcycled:  # fmt: skip
    """Write a mixture of dense models to ``out``: an expert of each, and all else of the base. Blocks.

    Exact where all experts are the base's own feed-forward, without noise: the start is the dense model whatever the
    router says. Else lossy. One layer of the mixture is in memory at a time; prompts are read by the base with one
    feed-forward in memory at a time, beside the rest of it in float32.

    Args:
        plan: what of; `coterie.jobs.read_plan` and `coterie.jobs.copies_of` make some.
        out: the directory to make.
        family: to write in, one of `coterie.surgery.FAMILY_NAMES`; None: as the plan says, or by what the base is.
        texts, memory: what to measure perplexity on before and after, files or name -> text; and in how much memory.
        revision: of a base on the hub.
        resume: go on with unfinished work.
        say, show: told what is being done; given sheets for people.

    Raises:
        OptionError: ``out`` exists, or the models are not of one shape; says in what they differ.
        UnsupportedError: a model with experts, or whose feed-forwards are of no known form.
        PromptError: a prompt is empty or too long.
        CheckpointError: a checkpoint is damaged, or the disk is full.
    """
    refuse_existing(Path(out).expanduser(), resume)
    base = open_dense(locate(plan.base, revision))
    sources = [*plan.experts, *([plan.shared] if plan.shared is not None else [])]
    models = {plan.base: base}
    for name in dict.fromkeys(each.model for each in sources):
        models[name] = models.get(name) or open_dense(locate(name))
        _check_alike(base, models[name])
    _check_dtype(base, plan.dtype)
    target = mixture_family(base, _family(family or plan.architecture), shared=plan.shared is not None)
    notes = _notes(base, models)
    gates, alike = first_gates(base, plan, say)
    if alike is not None and alike.note:
        notes.append(alike.note)
    show(experts_sheet(plan, alike))
    about = _about(plan)
    made = from_dense(
        base, out, _edit(plan, models, gates), top_k=plan.k, about=about, family=target.name, resume=resume,
        progress=lambda what, done, of: say(f"{what}: {done} of {of} layers"),
    )  # fmt: skip
    kept = _exactness(plan)
    report = surgery_report(base, made, about, texts=texts, memory=memory, say=say)
    show(report.sheet())
    show(kept_sheet(kept, notes))
    return Upcycled(report, kept, tuple(notes))


def _edit(
    plan: UpcyclePlan, models: Mapping[str, DenseCheckpoint], gates: Callable[[str, int], Gate]
) -> Callable[[DenseLayer], NewMixture]:
    places = {name: {ffn.name: ffn for ffn in model.ffns} for name, model in models.items()}

    def weights_of(source: ExpertSource, layer: DenseLayer, number: int) -> dict[str, Tensor]:
        own = source.model == plan.base
        read = layer if own else read_ffn(models[source.model], places[source.model][layer.ffn.name])
        weights = scaled_down(read.weights, source.scale)
        if not source.noise:
            return weights
        # experts and layers must differ, and so must the same ones under another seed
        seed = plan.seed * 1_000_003 + layer.ffn.layer * 1_009 + number
        return {name: stack[0] for name, stack in copies(weights, 1, noise=source.noise, seed=seed).items()}

    def edit(layer: DenseLayer) -> NewMixture:
        names = [each.model for each in plan.experts]
        stack = side_by_side([weights_of(each, layer, n) for n, each in enumerate(plan.experts)], names)
        shared = None if plan.shared is None else weights_of(plan.shared, layer, len(plan.experts))
        return NewMixture(stack, gates(layer.ffn.name, layer.ffn.layer), shared)

    return edit


def _check_alike(base: DenseCheckpoint, other: DenseCheckpoint) -> None:
    """Refuse a model whose feed-forwards do not fit into the base."""
    if other is base:
        return
    pairs: list[tuple[str, Any, Any]] = [
        (name, getattr(base.text, name, None), getattr(other.text, name, None)) for name in _SAME
    ]
    pairs.append(("inner width", base.ffns[0].shape.inner, other.ffns[0].shape.inner))
    differ = next((pair for pair in pairs if pair[1] != pair[2]), None)
    if differ is None and [ffn.name for ffn in base.ffns] != [ffn.name for ffn in other.ffns]:
        differ = ("feed-forwards", len(base.ffns), len(other.ffns))
    if differ is not None:
        raise OptionError(
            f"{other.path} cannot be an expert in {base.path}: {differ[0]} is {differ[2]} there and {differ[1]} in the "
            "base. Experts are models that were trained further from one base, or at least of its shape."
        )


def _check_dtype(base: DenseCheckpoint, asked: str | None) -> None:
    """Refuse another type than the base's, in which everything is written."""
    found = str(base.compute_dtype).removeprefix("torch.")
    if asked not in (None, found):
        raise OptionError(
            f"The plan asks for {asked}, and {base.path} is {found}: a mixture has the type of its base. "
            "Leave dtype out, or save the base in that type first."
        )


def _notes(base: DenseCheckpoint, models: Mapping[str, DenseCheckpoint]) -> list[str]:
    other = [name for name, model in models.items() if model.vocab_size != base.vocab_size]
    if not other:
        other = [name for name, model in models.items() if _tokenizer(model) != _tokenizer(base)]
    if not other:
        return []
    return [f"{', '.join(other)} has another tokenizer than the base; the base's is used."]


def _tokenizer(model: DenseCheckpoint) -> bytes:
    file = model.path / "tokenizer.json"
    return file.read_bytes() if file.is_file() else b""


def _family(name: str | None) -> str:
    """A family by its name, or by what mergekit-moe calls it."""
    return {None: "auto", "qwen": "qwen2_moe", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}.get(name, name or "auto")


def _same(plan: UpcyclePlan) -> bool:
    return plan.one_model and plan.shared is None and all(not each.noise and each.scale == 1 for each in plan.experts)


def _about(plan: UpcyclePlan) -> Method:
    count, base = len(plan.experts), Path(plan.base).name
    what = f"{count} copies of one feed-forward" if plan.one_model else f"feed-forwards of {count} models"
    summary = f"The experts of every layer are {what}; all else is of {base}. {plan.k} of them serve a token."
    experts = [Path(each.model).name for each in plan.experts]
    options: dict[str, Any] = {"k": plan.k, "gates": plan.gates, "seed": plan.seed, "experts": ", ".join(experts)}
    if any(each.noise for each in plan.experts):
        options["noise"] = ", ".join(f"{each.noise:g}" for each in plan.experts)
    if plan.shared is not None:
        options["shared"] = f"{Path(plan.shared.model).name} times {plan.shared.scale:g}"
    return Method("upcycle", "exact" if _same(plan) else "lossy", summary, PAPER, {}, options)


def _exactness(plan: UpcyclePlan) -> str:
    if _same(plan):
        return "exact: every expert is the dense feed-forward, so that any router gives the dense model."
    if plan.one_model and plan.shared is None:
        most = max(each.noise for each in plan.experts)
        return f"near: copies of the dense feed-forward with noise of {most:g} of its weights' size."
    return "lossy: tokens meet the feed-forwards of other models than the base."
