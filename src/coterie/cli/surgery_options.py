"""Options that verbs of surgery share, what they say while they work, and the shape of what they print."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from coterie.cli.shell import INTERRUPTED, stop
from coterie.errors import OptionError

if TYPE_CHECKING:
    from coterie.jobs.finishing.recover import Recovered
    from coterie.jobs.finishing.surgery_result import SurgeryResult
    from coterie.jobs.sheet import Sheet

CALIBRATION = "What the experts are judged by"

Out = Annotated[Path, typer.Option(metavar="DIR", help="The directory to make. It must not exist.")]
Experts = Annotated[
    int, typer.Option("--experts", "-e", metavar="N", min=1, help="Experts that a layer has afterwards.")
]
Statistics = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="As coterie trace --statistics wrote it.", rich_help_panel=CALIBRATION),
]
Text = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=CALIBRATION,
        help="A UTF-8 text to run over, which both models are also to foretell; may be given often.",
    ),
]
SkipLayers = Annotated[
    str | None, typer.Option(metavar="LAYERS", help="Decoder layers that stay as they are, such as 0 or 0,5-7.")
]
Container = Annotated[
    str,
    typer.Option(
        help="What the result is to load in: native (plain transformers), alias (a map from routes to fewer experts), "
        "coterie (layers that differ), or auto: the first that can say it."
    ),
]
Report = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write a page with pictures, such as report.html.")
]  # fmt: skip
Resume = Annotated[bool, typer.Option("--resume", help="Go on with work that was cut off.")]


def layer_numbers(text: str | None) -> list[int]:
    """Such as [0, 5, 6, 7] of the text 0,5-7.

    Raises:
        OptionError: it is neither numbers nor ranges.
    """
    numbers: list[int] = []
    for part in (text or "").replace(" ", "").split(","):
        if not part:
            continue
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if found is None:
            raise OptionError(f"{text!r} names no layers. Give numbers and ranges, such as 0,5-7.")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise OptionError(f"The range {part} ends before it begins. Write {last}-{first}.")
        numbers += range(first, last + 1)
    return sorted(set(numbers))


class Shown:
    """Prints sheets with a line between them; nothing when ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._any = quiet, False

    def __call__(self, sheet: Sheet) -> None:
        """Print one sheet."""
        if self._quiet:
            return
        from coterie.cli.sheet import show

        if self._any:
            typer.echo()
        self._any = True
        show(sheet)


class Told(NamedTuple):
    """What a verb's work is given to speak with: what is being done, and sheets for people."""

    say: Callable[[str], None]
    show: Callable[[Sheet], None]


@contextmanager
def at_work(out: Path, as_json: bool, report: Path | None = None) -> Iterator[Told]:
    """While a verb works on ``out``: refuses a page that could not be written, and says what an interruption leaves.

    Raises:
        OptionError: ``report`` cannot be written.
    """
    from coterie.cli.progress import Progress
    from coterie.jobs.output import check_output

    if report is not None:
        check_output(report)
    with Progress(as_json) as progress, resumable(out):
        yield Told(progress.say, Shown(as_json))


@contextmanager
def resumable(out: Path) -> Iterator[None]:
    """An interruption that leaves finished files behind says where they are, and how to go on."""
    part, before = out.with_name(f"{out.name}.part"), out.exists()
    try:
        yield
    except KeyboardInterrupt:
        if part.exists():
            stop(
                f"Interrupted. What is whole lies in {part}. Go on by --resume, or remove it: rm -r {part}", INTERRUPTED
            )
        if out.exists() and not before:
            stop(f"Interrupted, but {out} is whole: only what was to follow was not done.", INTERRUPTED)
        raise


def conclude(
    made: SurgeryResult, model: str, out: Path, *, report: Path | None, as_json: bool,
    taught: Recovered | None = None, hint: str | None = None,
) -> None:  # fmt: skip
    """The last a verb does: its page where one was asked for, and its record or where the result is.

    Args:
        hint: what to do with the result; None: to run it.
    """
    if report is not None:
        made.write_page(report)
    if as_json:
        learnt = {} if taught is None else {"distillation": taught.as_record()}
        typer.echo(json.dumps({"model": model, **made.as_record(), **learnt}))
        return
    if taught is not None:
        typer.echo(f"\n{taught.describe()}")
    typer.echo(f"\nWritten to {out} ({made.made.container}). {hint or f'Try it: coterie run {out}'}")


def given(**options: Any) -> dict[str, Any]:
    """The options that were typed."""
    return {name: value for name, value in options.items() if value is not None}


def refuse(options: dict[str, Any], where: str) -> None:
    """Refuse options that were typed and that another one leaves nothing to do for.

    Raises:
        OptionError: says which.
    """
    if typed := [name for name, value in options.items() if value]:
        raise OptionError(f"{', '.join(typed)} does not go with {where}. Leave it out.")
