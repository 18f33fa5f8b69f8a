"""`coterie trace`: where every token of a text goes, and what the experts did with it, in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from coterie.cli.run import Json, Memory, Model, Revision
from coterie.cli.shell import one_sentence

STATISTICS = "Statistics, of models with experts and of dense ones"


@one_sentence
def trace(
    model: Model,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A UTF-8 text to run over; may be given often.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where the trace goes, such as trace.safetensors.")
    ] = None,
    memory: Memory = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens", "--max-tokens", metavar="N", min=2,
            help="Tokens of each text at most. Default: 1024 for a trace, 16384 for statistics.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens after which a new sequence begins. Default: 2048 at most; statistics: 512."),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", rich_help_panel=STATISTICS,
            help="Where statistics go, such as stats.safetensors: usage, router logits, output norms, channel "
            "activations. They feed split, merge, prune and compress.",
        ),
    ] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE", rich_help_panel=STATISTICS,
            help="A text that is counted apart too, such as code=main.py; may be given often.",
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, rich_help_panel=STATISTICS,
            help="Hidden states of each layer that are kept, and given to every expert.",
        ),
    ] = 256,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients", rich_help_panel=STATISTICS,
            help="Of a dense model, score channels by activation times gradient too.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=STATISTICS, help="Draws the sample.")] = 0,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Run MODEL over texts and keep every routing decision (--out), or statistics of them (--statistics). [Exact.]

    coterie plan --trace reads the first; surgery reads the second.
    """
    from coterie.cli.progress import Progress

    _check(out, statistics, domain, gradients)
    texts, domains = text or [], domains_of(domain or [])
    record: dict[str, Any] = {"model": model}
    shown: list[str] = []
    with Progress(as_json) as progress:
        if out is not None:
            from coterie.jobs.tracing.record import TOKENS
            from coterie.jobs.tracing.record import record as record_trace

            files = [*texts, *(file for some in domains.values() for file in some)]
            traced = record_trace(
                model, files, out, memory, tokens=tokens or TOKENS, context=context, revision=revision,
                say=progress.say,
            )  # fmt: skip
            record |= {"out": str(out), **traced.as_record()}
            shown.append(
                f"{traced.describe()}\nWritten to {out}. Plan with it: coterie plan {model} --trace {out}"
            )  # fmt: skip
        if statistics is not None:
            from coterie.jobs.tracing.statistics import TOKENS as MOST
            from coterie.jobs.tracing.statistics import collect_statistics

            made = collect_statistics(
                model, texts, statistics, memory, domains=domains, tokens=tokens or MOST, context=context,
                sample=sample, gradients=gradients, seed=seed, revision=revision, say=progress.say,
            )  # fmt: skip
            record["statistics"] = {"out": str(statistics), **made.as_record()}
    if as_json:
        typer.echo(json.dumps(record))
        return
    for words in shown:
        typer.echo(words)
    if statistics is not None:
        from coterie.cli.sheet import show

        if shown:
            typer.echo()
        show(made.sheet())
        typer.echo(f"\nWritten to {statistics}.")


def _check(out: Path | None, statistics: Path | None, domain: list[str] | None, gradients: bool) -> None:
    from coterie.errors import OptionError

    if out is None and statistics is None:
        raise OptionError(
            "Say what to keep: --out trace.safetensors for every routing decision, --statistics stats.safetensors for "
            "what surgery needs, or both."
        )
    if statistics is None and (domain or gradients):
        raise OptionError("--domain and --gradients are about statistics. Say where they go: --statistics FILE")


def domains_of(given: list[str]) -> dict[str, list[Path]]:
    """NAME=FILE, several files of one name together, in the order given."""
    from coterie.errors import OptionError

    domains: dict[str, list[Path]] = {}
    for one in given:
        name, equals, path = one.partition("=")
        if not (name and equals and path):
            raise OptionError(f"{one!r} is no domain. Give a name and a file: --domain code=main.py")
        domains.setdefault(name, []).append(Path(path))
    return domains
