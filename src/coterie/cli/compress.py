"""`coterie compress`: experts as thin factors, stored and computed as such."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie.cli.distill_options import (
    DistillRate,
    DistillSteps,
    DistillText,
    check_distillation,
    recovered,
)
from coterie.cli.run import Json, Memory, Model, Revision
from coterie.cli.shell import one_sentence
from coterie.cli.surgery_options import (
    Out,
    Report,
    Resume,
    SkipLayers,
    Statistics,
    Text,
    at_work,
    conclude,
    layer_numbers,
)

SIZE = "How small, one of the two"
REST = "What stays of S = W - U V"


@one_sentence
def compress(
    model: Model,
    out: Out,
    rank: Annotated[
        int | None, typer.Option(metavar="R", help="Rank of every matrix, such as 32.", rich_help_panel=SIZE)
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", rich_help_panel=SIZE,
            help="Of the whole model: 50% or 6GiB. Ranks go where they keep most of the outputs.",
        ),
    ] = None,
    keep: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the units that stays, such as 0.1.", rich_help_panel=REST)
    ] = 0.0,
    unit: Annotated[
        str, typer.Option(help="row (outputs), col (inputs) or neuron (hidden neurons).", rich_help_panel=REST)
    ] = "row",
    score: Annotated[
        str,
        typer.Option(
            rich_help_panel=REST,
            help="energy: what adds most to the outputs. gradient: weight times gradient on --text, with the model in "
            "memory (MC-SMoE without training).",
        ),
    ] = "energy",
    merge_first: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Merge experts to N in a layer before, as coterie merge.")
    ] = None,
    statistics: Statistics = None,
    text: Text = None,
    distill_steps: DistillSteps = None,
    distill_text: DistillText = None,
    distill_rate: DistillRate = 1e-4,
    skip_layers: SkipLayers = None,
    report: Report = None,
    memory: Memory = None,
    resume: Resume = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Store every expert's matrix as two thin ones and a few rows of what those miss. [Lossy.]

    Fewer bytes and fewer operations for a token. Without a text all inputs count alike; with one, what is heard counts.
    """
    from coterie.jobs.shrinking.compress import compress as make

    check_distillation(distill_steps, distill_text, text)
    with at_work(out, as_json, report) as told:
        made = make(
            model, out, rank=rank, size=size, keep=keep, unit=unit, score=score, merge_first=merge_first,
            statistics=statistics, texts=text or (), memory=memory, skip_layers=layer_numbers(skip_layers),
            revision=revision, resume=resume, say=told.say, show=told.show,
        )  # fmt: skip
        taught = recovered(
            out, model, distill_steps, distill_text or text, distill_rate, memory=memory, revision=revision,
            say=told.say,
        )  # fmt: skip
    conclude(made, model, out, report=report, as_json=as_json, taught=taught)
