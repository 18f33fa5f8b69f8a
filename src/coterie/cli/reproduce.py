"""`coterie reproduce`: a paper's claims on this machine, with a verdict for each."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.shell import INTERRUPTED, one_sentence, stop

if TYPE_CHECKING:
    from coterie.studies import State

_EVERY = 15.0  # seconds between two lines where there is no terminal


@one_sentence
def reproduce(
    paper: Annotated[
        str | None, typer.Argument(metavar="[PAPER]", help="Which study. Without it, the studies are listed.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,N", help="With commas between. Default: those of the study.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each with one thread.")] = 2,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            "--data",
            metavar="PATH",
            help="What to learn from: text, or images for advmoe-images. Default: the sources of Python's library.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the JSON report goes. Default: reproduce-PAPER.json.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A twentieth of the steps, one seed; shows nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON too, on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
) -> None:
    """Put a paper's claims to the test: train its arms, measure, print a verdict per claim. [Training.]

    Stopped with Ctrl-C, the same command goes on with what is finished.
    """
    if paper is None:
        _list()
        return
    from coterie.studies import open_study, run_study, sheet_of
    from coterie.studies.runner import QUICK, work_of

    study = open_study(paper)
    chosen = _seeds(seeds) or ((study.seeds[0],) if quick else None)
    target = out or Path(f"reproduce-{paper}{'-quick' if quick else ''}.json")
    try:
        with _Watch(quiet) as watch:
            record = run_study(
                study, target, seeds=chosen, jobs=jobs, text=text, scale=QUICK if quick else 1.0, watch=watch.see
            )
    except KeyboardInterrupt:
        kept = len(list(work_of(target).glob("*.json"))) - 1
        stop(f"Stopped. {max(kept, 0)} finished runs are kept: type the same command to go on.", INTERRUPTED)
    _show(record, sheet_of(record), as_json)
    if not quiet:
        print(f"The report is {target}.", file=sys.stderr)


def _list() -> None:
    from coterie.studies import STUDIES, open_study

    for name in STUDIES:
        study = open_study(name)
        typer.echo(f"{name:<18}{study.paper}")


def _seeds(text: str | None) -> tuple[int, ...] | None:
    from coterie.errors import OptionError

    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise OptionError(f"--seeds {text!r} is not a list of whole numbers. Write them so: --seeds 0,1,2") from None


def _show(record: dict[str, Any], sheet: Any, as_json: bool) -> None:
    if as_json:
        import json

        typer.echo(json.dumps(record))
        return
    from coterie.cli.sheet import show

    show(sheet)


class _Watch:
    """A bar on a terminal, a line now and then elsewhere, nothing when ``quiet``."""

    def __init__(self, quiet: bool) -> None:
        self._quiet, self._bar, self._task, self._last = quiet, None, None, 0.0  # type: tuple[bool, Any, Any, float]

    def __enter__(self) -> _Watch:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
            self._task = self._bar.add_task("Preparing", total=None)
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def see(self, state: State) -> None:
        """Show how far the study is."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.steps, total=state.of, description=told(state))
        elif not self._quiet and (state.finished == state.runs or time.monotonic() - self._last >= _EVERY):
            self._last = time.monotonic()
            print(told(state), file=sys.stderr, flush=True)


def told(state: State) -> str:
    """ "step 1200 of 6000, run 3 of 12, about 4 minutes left: RMoE seed 0, RMoE seed 1"."""
    text = f"step {state.steps} of {state.of}, {state.finished} of {state.runs} runs finished"
    left = state.seconds_left
    if left is not None and state.steps < state.of:
        text += f", about {left / 60:.0f} minutes left" if left > 90 else f", about {left:.0f} seconds left"
    return text + (f": {', '.join(state.running)}" if state.running else "")
