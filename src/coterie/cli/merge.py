"""`coterie merge`: fewer experts, those that are alike as one; or one model, the mean of several."""

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
from coterie.cli.merge_models import merge_models
from coterie.cli.run import Json, Memory, Model, Revision
from coterie.cli.shell import one_sentence
from coterie.cli.surgery_options import (
    Container,
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
    refuse,
)
from coterie.errors import OptionError

HOW = "How, in place of what the method says"
MEAN = "One model, the mean of several"


@one_sentence
def merge(
    model: Model,
    out: Out,
    experts: Annotated[
        int | None, typer.Option("--experts", "-e", metavar="N", min=1, help="Experts that a layer has afterwards.")
    ] = None,
    statistics: Statistics = None,
    text: Text = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="m-smoe (default), average (its unweighted baseline), hc-smoe, ream, or auto: what moves the layers' "
            "outputs least on a sample."
        ),
    ] = None,
    dominant: Annotated[
        str | None,
        typer.Option(
            help="Whom the others join: coverage, frequency (as in the paper) or saliency.", rich_help_panel=HOW
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            help="By what experts are alike: router-logits, router-logits-centred, router-rows, weights, outputs, "
            "hierarchical, salient or random.",
            rich_help_panel=HOW,
        ),
    ] = None,
    align: Annotated[
        str | None,
        typer.Option(help="How hidden neurons are matched: weight, activation or none.", rich_help_panel=HOW),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Whose order of neurons a group takes: its dominant's, or the layer's first expert's (as in the "
            "paper): dominant or first.",
            rich_help_panel=HOW,
        ),
    ] = None,
    weigh: Annotated[
        str | None,
        typer.Option(help="What an expert counts: frequency, saliency or uniform.", rich_help_panel=HOW),
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(
            help="map keeps every row of the gates, which decide as before; drop keeps the dominants' rows alone, so "
            "that plain transformers loads the result.",
            rich_help_panel=HOW,
        ),
    ] = None,
    uniform: Annotated[
        bool | None,
        typer.Option("--uniform/--adaptive", help="As many in every layer, or where they matter.", rich_help_panel=HOW),
    ] = None,
    capacity: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Most experts in a group.", rich_help_panel=HOW)
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of random groups.", rich_help_panel=HOW)] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="OTHER[=WEIGHT]",
            help="A model of MODEL's architecture, its weight 1 unless said; may be given often.",
            rich_help_panel=MEAN,
        ),
    ] = None,
    weight: Annotated[
        float | None, typer.Option(help="Of MODEL beside them. Default: 1.", rich_help_panel=MEAN)
    ] = None,
    normalise: Annotated[
        bool | None,
        typer.Option(
            "--normalise/--no-normalise",
            help="Divide weights by their sum (default), or take them as they are.",
            rich_help_panel=MEAN,
        ),
    ] = None,
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
    """Merge experts of MODEL that are alike, neurons in one order, weighted by use. [Lossy.]

    Prints first how much is there twice: where little is, merging costs much. Gates keep all their rows by default, so
    that tokens go where they went. Compare with coterie prune.

    [bold]coterie merge MODEL --experts 12 --text notes.txt --out DIR[/bold]

    [bold]coterie merge MODEL --with OTHER=0.5 --out DIR[/bold] writes the mean of models, dense or with experts.
    """
    if other:
        typed = {
            "--experts": experts, "--statistics": statistics, "--method": method, "--dominant": dominant,
            "--group": group, "--align": align, "--reference": reference, "--weigh": weigh, "--router": router,
            "--uniform": uniform, "--capacity": capacity, "--seed": seed, "--distill-steps": distill_steps,
            "--skip-layers": skip_layers,
        }  # fmt: skip
        refuse(typed, "--with, which takes models whole")
        merge_models(
            model, other, out, weight=weight, normalise=normalise, texts=text or (), memory=memory, report=report,
            resume=resume, revision=revision, as_json=as_json,
        )  # fmt: skip
        return
    refuse({"--weight": weight, "--normalise": normalise}, "merging experts, but with --with OTHER")
    if experts is None:
        raise OptionError("Say how many experts a layer shall have: --experts 12; or name a model by --with OTHER.")
    from coterie.jobs.shrinking.merge import merge as make

    options = given(
        dominant=dominant, group=group, align=align, reference=reference, weigh=weigh, router=router,
        uniform=uniform, capacity=capacity, seed=seed,
    )  # fmt: skip
    check_distillation(distill_steps, distill_text, text)
    with at_work(out, as_json, report) as told:
        made = make(
            model, out, experts, method=method or "m-smoe", statistics=statistics, texts=text or (), memory=memory,
            skip_layers=layer_numbers(skip_layers), container=container,  # type: ignore[arg-type]
            revision=revision, resume=resume, say=told.say, show=told.show, **options,
        )  # fmt: skip
        taught = recovered(
            out, model, distill_steps, distill_text or text, distill_rate, memory=memory, revision=revision,
            say=told.say,
        )  # fmt: skip
    conclude(made, model, out, report=report, as_json=as_json, taught=taught)
