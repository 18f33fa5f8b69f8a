"""`coterie inspect`: what a checkpoint is, and with a text, which experts it uses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.named_values import named_value
from coterie.cli.run import Json, Model, Revision
from coterie.cli.shell import one_sentence
from coterie.errors import OptionError

IMAGES = "What a convolutional network would cost (exact: nothing is computed)"
USE = "Which experts a text uses (exact: the budget changes no route)"


@one_sentence
def inspect(
    model: Model,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Run MODEL over this UTF-8 text; give several to compare.", rich_help_panel=USE
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=2, help="Tokens of each text at most.", rich_help_panel=USE)
    ] = 4096,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory", "-m", metavar="SIZE", rich_help_panel=USE,
            help="Bound on weights, experts, KV cache and workspace of the run, such as 6GiB. Default: what is free.",
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with heat maps.", rich_help_panel=USE)
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the heat maps as a PNG.", rich_help_panel=USE)
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens the memory is stated for, or that a text is read in. Default: 2048, or 1024."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="As coterie trace --statistics wrote it: tell how experts were used and which are "
            "alike, without a run.", rich_help_panel=USE,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", rich_help_panel=IMAGES,
            help="Of an architecture given as MODEL, such as experts=4, ratio=0.25, router=resnet8, image_size=64.",
        ),
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Show MODEL's layers, experts, sizes and routers without loading it; with --text, which experts a text uses.

    MODEL may also be a convolutional network, or the name of its architecture: resnet18, wrn28_10, vgg16, densenet40.
    """
    if text and statistics is not None:
        raise OptionError("--text counts anew, --statistics tells what was counted: give one of the two.")
    if text:
        _use(model, text, tokens, memory, report, png, context, revision, as_json)
        return
    for name, value in (("--report", report), ("--png", png), ("--memory", memory)):
        if value is not None:
            raise OptionError(f"{name} is for the run over a text. Name one: coterie inspect {model} --text notes.txt")
    from coterie.cli.progress import Progress
    from coterie.jobs.inspecting.inspect import inspect as look

    with Progress(as_json):
        found = look(
            model,
            context=context,
            revision=revision,
            options=dict(named_value(each, "experts=4") for each in option or ()),
            statistics=statistics,
        )
    if as_json:
        typer.echo(json.dumps(found.as_record()))
    else:
        from coterie.cli.sheet import show

        show(found.sheet())


def _use(
    model: str, texts: list[Path], tokens: int, memory: str | None, report: Path | None, png: Path | None,
    context: int | None, revision: str | None, as_json: bool,
) -> None:  # fmt: skip
    from coterie.cli.progress import Progress
    from coterie.jobs.locate import locate
    from coterie.jobs.output import check_output
    from coterie.jobs.tracing.usage import usage
    from coterie.jobs.tracing.usage_png import require_matplotlib

    targets = [check_output(path) for path in (report, png) if path is not None]
    for target in targets:
        if any(target.exists() and text.exists() and target.samefile(text) for text in texts):
            raise OptionError(f"{target} is the text that is read. Name another file for the pictures.")
    if png is not None:
        require_matplotlib()
    with Progress(as_json) as progress:
        path = locate(model, revision)
        used = usage(path, texts, memory, tokens=tokens, context=context, name=model, say=progress.say)
    if report is not None:
        used.write_html(report)
    if png is not None:
        used.write_png(png)
    if as_json:
        typer.echo(json.dumps(used.as_record() | {"written": [str(target) for target in targets]}))
        return
    from coterie.cli.sheet import show

    show(used.sheet())
    typer.echo(_pictures(targets))


def _pictures(targets: list[Path]) -> str:
    if targets:
        return "\nWritten: " + ", ".join(map(str, targets))
    return "\nPictures: --report use.html writes a page with heat maps, --png use.png the heat maps alone."
