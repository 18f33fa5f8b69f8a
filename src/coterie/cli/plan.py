"""`coterie plan`: what would happen, before it does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.run import Json, Memory, Model, Revision
from coterie.cli.shell import one_sentence, stop


@one_sentence
def plan(
    model: Model,
    memory: Memory = None,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer to make room for. Default: 2048 at most.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of the prompt.")] = 128,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Routes recorded by coterie trace. Default: uniform routes.")
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="As coterie trace --statistics wrote it: experts as often as it counted them."
        ),
    ] = None,
    tokens_per_second: Annotated[
        float, typer.Option(metavar="N", min=0.001, help="Speed that the largest model is asked for.")
    ] = 5.0,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Say where the memory would go, what is read per token and how fast that is, without loading MODEL."""
    from coterie.cli.progress import Progress
    from coterie.jobs.running.plan import plan as make

    with Progress(as_json) as progress:
        found = make(
            model, memory, context=context, batch=batch, prompt=prompt,
            trace=trace, statistics=statistics, tokens_per_second=tokens_per_second, revision=revision,
            say=progress.say,
        )  # fmt: skip
    found = replace(found, model=replace(found.model, name=model))
    typer.echo(json.dumps(found.as_record()) if as_json else found.describe())
    if found.problem:
        stop(found.problem, found.exit_code)
