"""`coterie verify`: prove on this machine that the budget changes no bit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.cli.run import Compile, Json, Memory, Model, Policy, Prefetch, Revision
from coterie.cli.shell import one_sentence, stop

if TYPE_CHECKING:
    from coterie.jobs.running.verify import Report

NOT_EQUAL = 6


@one_sentence
def verify(
    model: Model,
    memory: Memory = None,
    text: Annotated[str | None, typer.Option(help="Text to run; a sentence of our own by default.")] = None,
    new_tokens: Annotated[int, typer.Option("--new-tokens", "-n", min=0, help="Decode steps after it.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Sequences at a time.")] = 1,
    policy: Policy = "stale-first",
    prefetch: Prefetch = "none",
    transformers: Annotated[
        bool, typer.Option("--transformers/--no-transformers", help="Also compare with transformers, to rounding.")
    ] = True,
    compile: Compile = None,
    revision: Revision = None,
    as_json: Json = False,
) -> None:
    """Compare MODEL's logits under the budget with everything resident, bit for bit, and with transformers."""
    from coterie.cli.progress import Progress
    from coterie.jobs.locate import locate
    from coterie.jobs.running.verify import TEXT
    from coterie.jobs.running.verify import verify as check

    with Progress(as_json) as progress:
        report = check(
            locate(model, revision), memory, text=text or TEXT, new_tokens=new_tokens, batch=batch,
            policy=policy, prefetch=prefetch, against_transformers=transformers,
            compile="auto" if compile is None else compile, say=progress.say,
        )  # fmt: skip
    typer.echo(json.dumps({"model": model, **report.as_record()}) if as_json else _described(report))
    if not report.holds:
        stop("The logits are not the same. Please report this with the output of --json.", NOT_EQUAL)


def _routed(report: Report) -> str:
    """With what a model was compared that plain transformers does not load."""
    return " (with routers of Coterie, everything resident)" if report.routed else ""


def _described(report: Report) -> str:
    exact = "bit-identical" if report.difference is None else f"NOT identical, first at {report.difference}"
    lines = [
        f"memory        {report.budget.describe()}",
        f"experts read  {report.misses} times from disk",
        f"budget        {exact}: {report.logits} logits against {report.reference}",
    ]
    rounding = report.transformers
    if rounding is None:
        lines.append(f"transformers  not compared: {report.transformers_skipped}")
    else:
        verdict = "equal to rounding" if rounding.holds else "NOT equal to rounding"
        lines.append(
            f"transformers  {verdict}{_routed(report)}: largest error {rounding.error:.1e} of the largest logit "
            f"(allowed {rounding.allowed:.0e}), same best token at {rounding.same_best:.1%} of positions"
        )
    return "\n".join(lines)
