"""`coterie trace`: where every token of a text goes, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.run import Json, Memory, Model, Revision
from coterie.cli.shell import one_sentence


@one_sentence
def trace(
    model: Model,
    text: Annotated[list[Path], typer.Option(metavar="FILE", help="A UTF-8 text to run over; may be given often.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the trace goes, such as trace.safetensors.")],
    memory: Memory = None,
    tokens: Annotated[int, typer.Option(metavar="N", min=2, help="Tokens of each text at most.")] = 1024,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens after which a new sequence begins. Default: 2048 at most.")
    ] = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Run MODEL over texts and keep every routing decision, for coterie plan --trace. [Exact.]"""
    from coterie.cli.progress import Progress
    from coterie.jobs.record import record

    with Progress(as_json) as progress:
        made = record(
            model, text, out, memory, tokens=tokens, context=context,
            revision=revision, say=progress.say,
        )  # fmt: skip
    if as_json:
        typer.echo(json.dumps({"model": model, "out": str(out), **made.as_record()}))
    else:
        typer.echo(f"{made.describe()}\nWritten to {out}. Plan with it: coterie plan {model} --trace {out}")
