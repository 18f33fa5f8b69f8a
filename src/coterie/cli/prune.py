"""`coterie prune`: fewer experts, the best of them as they are."""

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
    Container,
    Experts,
    Out,
    Report,
    Resume,
    SkipLayers,
    Statistics,
    Text,
    at_work,
    conclude,
    given,
    layer_numbers,
)


@one_sentence
def prune(
    model: Model,
    experts: Experts,
    out: Out,
    statistics: Statistics = None,
    text: Text = None,
    method: Annotated[
        str,
        typer.Option(
            help="Who stays: reap (weight times norm of the output), naee (what changes the layer's output least), "
            "frequency, gate-mass, output-norm, router-norm or random."
        ),
    ] = "reap",
    uniform: Annotated[
        bool, typer.Option("--uniform/--adaptive", help="As many in every layer, or where they matter.")
    ] = True,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, help="naee: subsets of a layer up to which all are tried. Default: 20000."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of random choices.")] = None,
    distill_steps: DistillSteps = None,
    distill_text: DistillText = None,
    distill_rate: DistillRate = 1e-4,
    skip_layers: SkipLayers = None,
    container: Container = "auto",
    report: Report = None,
    memory: Memory = None,
    resume: Resume = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Leave experts of MODEL out, with their rows of the gates; the others stay bit for bit. [Lossy.]

    The result loads in plain transformers where every layer has as many. Compare with coterie merge.
    """
    from coterie.jobs.shrinking.prune import prune as make

    check_distillation(distill_steps, distill_text, text)
    with at_work(out, as_json, report) as told:
        made = make(
            model, out, experts, method=method, statistics=statistics, texts=text or (), memory=memory,
            skip_layers=layer_numbers(skip_layers), container=container,  # type: ignore[arg-type]
            revision=revision, resume=resume, say=told.say, show=told.show, uniform=uniform,
            **given(limit=limit, seed=seed),
        )  # fmt: skip
        taught = recovered(
            out, model, distill_steps, distill_text or text, distill_rate, memory=memory, revision=revision,
            say=told.say,
        )  # fmt: skip
    conclude(made, model, out, report=report, as_json=as_json, taught=taught)
