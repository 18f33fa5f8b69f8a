"""`coterie doctor`: what may be wrong, and what to do about it."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from coterie.cli.run import Json, Revision
from coterie.cli.shell import one_sentence, stop


@one_sentence
def doctor(
    model: Annotated[
        str | None, typer.Argument(help="A checkpoint directory, a hub name, or [bold]pocket[/bold]; none looks at the "
        "machine alone.")
    ] = None,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Read every file and compare it with what the hub says.")
    ] = False,
    values: Annotated[bool, typer.Option("--values", help="Read every weight and look for NaN and infinity.")] = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Check this machine, and MODEL's files, and say what to do. Ends with the code of the first problem."""
    from coterie.cli.progress import Progress

    try:
        from coterie.jobs.checking.doctor import doctor as look
    except ImportError as error:
        stop(
            f"{error.name or 'A library'} cannot be imported ({error}). Type: pip install --force-reinstall coterie", 4
        )
    with Progress(as_json) as progress:
        found = look(model, checksum=checksum, values=values, revision=revision, say=progress.say)
    typer.echo(json.dumps({"model": model, **found.as_record()}) if as_json else found.describe())
    if found.exit_code:
        raise typer.Exit(found.exit_code)
