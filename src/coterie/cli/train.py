"""`coterie train`: a model from text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.shell import INTERRUPTED, one_sentence, stop

WHAT = ("pocket",)


@one_sentence
def train(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="What to train: [bold]pocket[/bold].")],
    text: Annotated[
        Path, typer.Option(metavar="DIR", help="Where <domain>.train.txt, .valid.txt and .test.txt lie, or .txt.gz.")
    ],
    out: Annotated[Path, typer.Option(help="Where the model goes: a directory that does not exist.")] = Path(
        "my-pocket"
    ),
    domains: Annotated[str | None, typer.Option(help="Which domains, with commas between. Default: all.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates. Default: those of the model that ships.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first weights and of the order of text.")] = 0,
    sources: Annotated[
        Path | None, typer.Option(help="JSON of {domain: {what, licence, attribution}}, for the model card.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped training of OUT was.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Train WHAT on text, measure it, write its card; stopped and resumed it gives the same bits. [Training.]"""
    from coterie.cli.progress import Progress
    from coterie.errors import OptionError
    from coterie.training.pocket import recipe_for, train_pocket

    if what not in WHAT:
        raise OptionError(f"{what!r} cannot be trained. What can: {', '.join(WHAT)}.")
    try:
        with Progress(quiet) as progress:
            train_pocket(
                out, text, domains=[name.strip() for name in domains.split(",")] if domains else None,
                sources=sources, recipe=recipe_for(steps, seed), resume=resume, progress=progress.training,
            )  # fmt: skip
    except KeyboardInterrupt:
        stop(_how_to_go_on(out), INTERRUPTED)
    if not quiet:
        print(f'{out / "README.md"} has the measurements. Try: coterie run {out} "Once"', file=sys.stderr)


def _how_to_go_on(out: Path) -> str:
    from coterie.training.trainer import last_checkpoint

    last = last_checkpoint(out.with_name(out.name + ".work"))
    if last is None:
        return "Stopped before the first checkpoint; nothing is kept."
    return f"Stopped. Type the same command with --resume to go on from step {last.name.split('-')[1]}."
