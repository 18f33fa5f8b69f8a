"""The command and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie import __version__
from coterie.cli.run import run
from coterie.cli.verify import verify

app = typer.Typer(
    name="coterie",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Mixtures of experts in the memory you give them. MODEL is a checkpoint directory, a hub name, or "
    "[bold]pocket[/bold], a small model made on the spot.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"coterie {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Options before the verb."""


app.command()(run)
app.command()(verify)


def main() -> None:
    """The console script."""
    app(prog_name="coterie")
