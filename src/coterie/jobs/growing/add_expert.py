"""One more expert in every layer of a mixture: the feed-forwards of a dense model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from coterie.errors import OptionError, UnsupportedError
from coterie.jobs.finishing.surgery_report import surgery_report
from coterie.jobs.growing.split_sheet import kept_sheet
from coterie.jobs.growing.upcycle import Upcycled
from coterie.jobs.growing.upcycle_gates import new_states
from coterie.jobs.locate import locate
from coterie.jobs.sheet import Sheet
from coterie.models.checkpoint import open_checkpoint
from coterie.surgery.dense import open_dense, read_ffn
from coterie.surgery.layer import LayerExperts, NewLayer
from coterie.surgery.method import Method
from coterie.surgery.rewrite import Container, rewrite
from coterie.surgery.upcycle import added_row, appended
from coterie.surgery.writer import refuse_existing

__all__ = ["add_expert"]

Say = Callable[[str], None]
Show = Callable[[Sheet], None]


def add_expert(
    model: str | Path, dense: str | Path, out: str | Path, *, prompts: Sequence[str] = (), negative: Sequence[str] = (),
    texts: Sequence[str | Path] | Mapping[str, str] = (), memory: str | int | None = None,
    container: Container = "auto", revision: str | None = None, resume: bool = False, say: Say = lambda text: None,
    show: Show = lambda sheet: None,
) -> Upcycled:  # fmt: skip
    """Write the mixture ``model`` with one more expert in every layer: the feed-forwards of ``dense``. Lossy. Blocks.

    The other experts and their rows stay bit for bit. The new row of a gate is the mean of its rows, or made so that
    on the prompts the new expert comes just before the best of the others; see `coterie.surgery.added_row`.

    Args:
        model: a checkpoint with experts.
        dense: a dense checkpoint whose feed-forwards are as wide as an expert.
        out: the directory to make.
        prompts, negative: texts that the new expert should get, and that it should not.
        texts, memory: as of `upcycle`.
        container, revision, resume: as of `coterie.surgery.rewrite`.
        say, show: told what is being done; given sheets for people.

    Raises:
        OptionError: ``out`` exists, the sizes do not fit, or groups of experts do not come out even.
        UnsupportedError: a router without one row for each expert.
        CoterieError: as of `upcycle`.
    """
    refuse_existing(Path(out).expanduser(), resume)
    if negative and not prompts:
        raise OptionError("Negative prompts say what a new expert is not for; say by --prompt what it is for, too.")
    checkpoint, source = open_checkpoint(locate(model, revision)), open_dense(locate(dense))
    ffns = {ffn.layer: ffn for ffn in source.ffns}
    lacking = [site.layer for site in checkpoint.sites if site.layer not in ffns]
    if lacking:
        raise OptionError(
            f"{checkpoint.path} has experts in layer {lacking[0]}, and {source.path} has no feed-forward there: it has "
            f"{len(ffns)}. Take a model of as many layers."
        )
    states = new_states(checkpoint, prompts, negative, say) if prompts else {}

    def edit(layer: LayerExperts) -> NewLayer:
        weights = read_ffn(source, ffns[layer.site.layer]).weights
        positive, away = states.get(layer.site.name, (None, None))
        grown = appended(layer.weights, weights, source.path.name)
        routes = None if layer.experts_of is None else (*layer.experts_of, layer.num_experts)
        return NewLayer(grown, _grown_router(layer, positive, away), routes)

    started = "its prompts" if prompts else "the mean of the other rows"
    about = Method(
        "upcycle", "lossy", f"One expert more in every layer, the feed-forwards of {source.path.name}.", "",
        {}, {"prompts": list(prompts), "negative": list(negative), "new row": started},
    )  # fmt: skip
    made = rewrite(
        checkpoint, out, edit, about=about, container=container, resume=resume,
        progress=lambda what, done, of: say(f"{what}: {done} of {of} layers"),
    )  # fmt: skip
    kept = f"lossy: tokens that choose the new expert are answered by it; its row begins with {started}."
    report = surgery_report(checkpoint, made, about, texts=texts, memory=memory, say=say)
    show(report.sheet())
    show(kept_sheet(kept))
    return Upcycled(report, kept)


def _grown_router(layer: LayerExperts, positive: Tensor | None, negative: Tensor | None) -> dict[str, Tensor]:
    """Every tensor of the gate with one row more: the mean of its rows, or by prompts."""
    if "weight" not in layer.router:
        raise UnsupportedError(
            f"The gate of layer {layer.site.layer} has no matrix with a row for each expert, so none can be added."
        )
    grown = {}
    for name, rows in layer.router.items():
        new = added_row(rows, positive, negative) if name == "weight" else rows.float().mean(0).to(rows.dtype)
        grown[name] = torch.cat([rows, new[None]])
    return grown
