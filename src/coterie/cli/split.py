"""`coterie split`: a dense model cut into experts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.cli.run import Json, Memory, Revision
from coterie.cli.shell import one_sentence
from coterie.cli.surgery_options import CALIBRATION, Out, Report, Resume, Shown, Statistics, Text, at_work
from coterie.cli.trace import domains_of

CUT = "Who gets which channels"
ROUTER = "The router it begins with"
EXPORT = "One expert of a split as a plain dense model"

Dense = Annotated[str, typer.Argument(metavar="MODEL", help="A dense checkpoint: directory or hub name.")]
Family = Annotated[
    str,
    typer.Option(
        help="To write in: mixtral, qwen2_moe, qwen3_moe, flex_olmo, granitemoe, coterie (MODEL's own format with "
        "coterie.json), or auto: by what MODEL is."
    ),
]  # fmt: skip


@one_sentence
def split(
    model: Dense,
    out: Out,
    experts: Annotated[
        int | None,
        typer.Option("--experts", "-e", metavar="N", min=1, help="Experts of a layer. Default: one for each domain."),
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Experts per token. Default: 2; with --density 1.")
    ] = None,
    statistics: Statistics = None,
    text: Text = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", help="A text of one domain, such as code=main.py; may be given often.",
            rich_help_panel=CALIBRATION,
        ),
    ] = None,
    by: Annotated[
        str,
        typer.Option(
            help="activation, gradient (an expert for each domain), kmeans-activations, co-activation (from text), "
            "kmeans, random, contiguous (without), or auto.",
            rich_help_panel=CUT,
        ),
    ] = "auto",
    shared: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Of the channels: the busiest, for all tokens.", rich_help_panel=CUT),
    ] = 0.0,
    density: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Of the channels that each domain's expert has; experts overlap (Read-ME: 0.5).",
            rich_help_panel=CUT,
        ),
    ] = None,
    permanent: Annotated[
        bool,
        typer.Option(
            "--permanent", help="With --density: what all experts have becomes the shared expert.", rich_help_panel=CUT
        ),
    ] = False,
    channels: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Take the channels of an earlier split: its directory or file.", rich_help_panel=CUT
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.", rich_help_panel=CUT)] = 0,
    router: Annotated[
        str,
        typer.Option(
            help="fit, means, representative (from text), random, zero (all alike), or auto.", rich_help_panel=ROUTER
        ),
    ] = "auto",
    sharpness: Annotated[
        float,
        typer.Option(help="Spread of the first logits: how unequal weights are.", rich_help_panel=ROUTER),
    ] = 1e-3,
    scale: Annotated[
        str,
        typer.Option(
            help="Of the chosen experts' outputs: sum (as in MODEL), mean (as if they stood for all), or fit.",
            rich_help_panel=ROUTER,
        ),
    ] = "fit",
    export_domain: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="With --channels: write the expert of this domain, or number, instead of all.",
            rich_help_panel=EXPORT,
        ),
    ] = None,
    family: Family = "auto",
    memory: Memory = None,
    report: Report = None,
    resume: Resume = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Cut the feed-forwards of a dense MODEL into experts. [Exact where all are on and weigh alike; else lossy.]

    [bold]coterie split MODEL --experts 8 --k 2 --text notes.txt --out DIR[/bold] deals every channel out once;
    train it to recover. [bold]--k 8[/bold] keeps all on: the dense model.

    [bold]coterie split MODEL --domain code=a.py --domain prose=b.txt --density 0.5 --out DIR[/bold] makes an expert for
    each domain (Read-ME).
    """
    if export_domain is not None:
        _export(model, out, export_domain, channels, revision, resume, as_json)
        return
    from coterie.jobs.growing.split import split as make

    with at_work(out, as_json, report) as told:
        made = make(
            model, out, experts, k=k, way=by, shared=shared, density=density, permanent=permanent, router=router,
            sharpness=sharpness, scale=scale, seed=seed, channels=channels,  # type: ignore[arg-type]
            statistics=statistics, texts=text or (), domains=domains_of(domain or []), memory=memory, family=family,
            revision=revision, resume=resume, say=told.say, show=told.show,
        )  # fmt: skip
    if report is not None:
        made.write_page(report)
    if as_json:
        typer.echo(json.dumps({"model": model, **made.as_record()}))
    else:
        typer.echo(f"\nWritten to {out}. {_next(made, out)}")


def _next(made: Any, out: Path) -> str:
    if made.method.mark == "exact":
        return f"Try it: coterie run {out} --raw"
    return f"Let it recover: coterie train --model {out} --router top_k --text DIR --out RECOVERED"


def _export(
    model: str, out: Path, expert: str, channels: Path | None, revision: str | None, resume: bool, as_json: bool
) -> None:
    from coterie.errors import OptionError
    from coterie.jobs.growing.split import export_expert
    from coterie.jobs.growing.split_sheet import kept_sheet

    if channels is None:
        raise OptionError("Say of which split: --channels DIR, the directory that coterie split made.")
    with at_work(out, as_json) as told:
        made = export_expert(model, out, expert, channels, revision=revision, resume=resume, say=told.say)
    if as_json:
        typer.echo(json.dumps({"model": model, "expert": expert, **made.as_record()}))
        return
    shown = Shown(False)
    shown(made.sheet())
    shown(kept_sheet(f"lossy: the channels of expert {expert} alone, as the masked dense model has them."))
    typer.echo(f"\nWritten to {out}, a plain dense model.")
