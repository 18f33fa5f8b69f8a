"""`coterie export`: the same model in another form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.run import Json, Model, Revision
from coterie.cli.shell import one_sentence
from coterie.cli.surgery_options import Resume, at_work


@one_sentence
def export(
    model: Model,
    out: Annotated[
        Path, typer.Option(metavar="PATH", help="The directory to make, or a file that ends in .gguf. Must not exist.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="native (plain transformers), alias (a map from routes to experts), coterie, gguf (llama.cpp), or "
            "auto: native where it can be."
        ),
    ] = "auto",
    resume: Resume = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Write MODEL in another form, checked before it is put in place. [Exact.]

    A merged model becomes native by giving every route a copy of its expert: the size of the original, for plain
    transformers and vLLM.
    """
    from coterie.jobs.finishing.export import export as make

    with at_work(out, as_json) as told:
        made = make(model, out, format, revision=revision, resume=resume, say=told.say)
    if as_json:
        typer.echo(json.dumps({"model": model, **made.as_record()}))
    else:
        typer.echo(f"{made.describe()}\nWritten to {made.path}.")
