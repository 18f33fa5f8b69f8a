"""A sheet of facts on the terminal: colours where somebody looks, plain text where a program reads."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.table import Table as RichTable

    from coterie.jobs.sheet import Facts, Sheet, Table


def show(sheet: Sheet) -> None:
    """Print ``sheet`` to stdout."""
    if not sys.stdout.isatty():
        typer.echo(sheet.plain())
        return
    from rich.console import Console
    from rich.text import Text

    from coterie.jobs.sheet import Facts

    console = Console(highlight=False)
    console.print(Text(sheet.title, style="bold"))
    for block in sheet.blocks:
        console.print()
        console.print(_facts(block) if isinstance(block, Facts) else _table(block))


def _facts(block: Facts) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text

    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True, min_width=12)
    grid.add_column()
    for label, text in block.rows:
        grid.add_row(Text(label), Text(text))
    return grid


def _table(block: Table) -> RichTable:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(box=box.SIMPLE_HEAD, header_style="cyan", pad_edge=False, show_edge=False)
    for column, name in enumerate(block.head):
        table.add_column(Text(name), justify="right" if column in block.right else "left", overflow="fold")
    for row in block.rows:
        table.add_row(*map(Text, row))
    return table
