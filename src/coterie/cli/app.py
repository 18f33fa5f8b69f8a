"""The command and its verbs."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie import __version__
from coterie.cli.attack import attack
from coterie.cli.compress import compress
from coterie.cli.doctor import doctor
from coterie.cli.export import export
from coterie.cli.inspect import inspect
from coterie.cli.merge import merge
from coterie.cli.plan import plan
from coterie.cli.prune import prune
from coterie.cli.quantize import quantize
from coterie.cli.reproduce import reproduce
from coterie.cli.run import run
from coterie.cli.split import split
from coterie.cli.trace import trace
from coterie.cli.train import train
from coterie.cli.upcycle import upcycle
from coterie.cli.verify import verify

app = typer.Typer(
    name="coterie",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Mixtures of experts in the memory you give them. MODEL is a checkpoint directory, a hub name, or "
    "[bold]pocket[/bold], a small model that ships with Coterie.",
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
app.command()(inspect)
app.command()(plan)
app.command()(trace)
app.command()(train)
app.command()(compress)
app.command()(quantize)
app.command()(verify)
app.command()(split)
app.command()(upcycle)
app.command()(merge)
app.command()(export)
app.command()(prune)
app.command()(reproduce)
app.command()(attack)
app.command()(doctor)


def main() -> None:
    """The console script."""
    app(prog_name="coterie")
