"""`coterie run`: text from a checkpoint, in the memory given."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.shell import one_sentence

if TYPE_CHECKING:
    from coterie.models.checkpoint import Checkpoint
    from coterie.models.prompts import Prompts
    from coterie.models.requests import RouteOptions
    from coterie.serve import Engine, Sampling

STORE = "Where experts live (exact: changes the time, never the text)"
SAMPLING = "Sampling"
ROUTING = "Routing, of models with routers of Coterie (lossy: other experts, other text)"

Model = Annotated[str, typer.Argument(help="A checkpoint directory, a hub name, or [bold]pocket[/bold].")]
Memory = Annotated[
    str | None,
    typer.Option(
        "--memory", "-m", metavar="SIZE",
        help="Bound on weights, experts, KV cache and workspace, such as 6GiB. Default: what the machine has free.",
    ),
]  # fmt: skip
Policy = Annotated[str, typer.Option(help="Which expert leaves when room is needed: stale-first, lru or lfu. Exact.")]
Prefetch = Annotated[
    str, typer.Option(help="Guess the experts of later layers: none, previous-step or next-gate. Exact.")
]
Readers = Annotated[int, typer.Option(min=1, max=64, help="Threads that read experts from disk.")]
Warm = Annotated[
    Path | None,
    typer.Option(
        "--statistics", metavar="FILE",
        help="As coterie trace --statistics wrote it: begin with the experts that it saw used most. Exact.",
    ),
]  # fmt: skip
Compile = Annotated[
    bool | None,
    typer.Option(
        "--compile/--no-compile",
        help="Compute single tokens with a kernel the machine's C compiler makes: about twice as fast, other bits than "
        "without. Default: where a token reads so much that it pays.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub MODEL.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@one_sentence
def run(
    model: Model,
    prompt: Annotated[str | None, typer.Argument(help="What to continue; - reads stdin; none opens a chat.")] = None,
    memory: Memory = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", help="Tokens to generate at most.")] = 256,
    temperature: Annotated[
        float | None, typer.Option(help="0 is greedy. Default: the checkpoint's own choice.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Sample from the smallest set with this probability.", rich_help_panel=SAMPLING)
    ] = None,
    top_k: Annotated[int | None, typer.Option(help="Sample from this many tokens.", rich_help_panel=SAMPLING)] = None,
    min_p: Annotated[
        float | None, typer.Option(help="Drop tokens below this share of the best one.", rich_help_panel=SAMPLING)
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 discourages repeats.", rich_help_panel=SAMPLING)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Makes sampling, and experts by lot, repeatable.", rich_help_panel=SAMPLING)
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Stop at this text; may be given often.", rich_help_panel=SAMPLING)
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Experts per token; with a threshold, at most.", rich_help_panel=ROUTING)
    ] = None,
    p: Annotated[
        float | None, typer.Option("--p", help="Threshold of top-p or min-p.", rich_help_panel=ROUTING)
    ] = None,
    mean_experts: Annotated[
        float | None, typer.Option(help="Experts per token on average, if calibrated.", rich_help_panel=ROUTING)
    ] = None,
    draw: Annotated[
        str | None,
        typer.Option(help="Draws per token, sequence or batch; average; fixed:0...", rich_help_panel=ROUTING),
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message, for models with a chat template.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Leave the chat template out: plain continuation.")] = False,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens of prompt and answer to make room for. Default: what is needed.")
    ] = None,
    policy: Policy = "stale-first",
    prefetch: Prefetch = "none",
    readers: Readers = 1,
    statistics: Warm = None,
    compile: Compile = None,
    revision: Revision = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No status on stderr.")] = False,
) -> None:
    """Generate text from MODEL in the memory given, with the same bits as if it all fitted. [Exact.]"""
    from coterie.cli.progress import Progress
    from coterie.jobs.locate import locate
    from coterie.jobs.running.load import load
    from coterie.models.checkpoint import open_checkpoint
    from coterie.models.prompts import Prompts
    from coterie.models.requests import RouteOptions
    from coterie.serve import Engine, Sampling

    route = RouteOptions(k, p, mean_experts, draw, seed)
    sampling = Sampling(max_new_tokens, temperature, top_p, top_k, min_p, repetition_penalty, seed, tuple(stop or ()))
    text = _prompt_text(prompt)
    progress = Progress(quiet or as_json)
    with progress:
        checkpoint = open_checkpoint(locate(model, revision))
        cost = _cost(checkpoint, route)
        prompts = Prompts.of(checkpoint.path, checkpoint.context_length)
        ids = None if text is None else prompts.encode(text, raw=raw, system=system)
        progress.say(f"Loading {model}")
        host = load(
            checkpoint, memory, context=context or _needed(prompts, ids, max_new_tokens),
            policy=policy, prefetch=prefetch, readers=readers, compile="auto" if compile is None else compile,
            route=route, statistics=statistics,
        )  # fmt: skip
    if cost and not (quiet or as_json):
        typer.echo(cost, err=True)
    engine = Engine(host, prompts, route)
    if ids is None:
        from coterie.cli.chat import chat

        chat(engine, sampling, raw=raw, system=system, quiet=quiet)
    else:
        _answer(engine, ids, sampling, model=model, as_json=as_json, quiet=quiet)
    host.coterie.close()


def _cost(checkpoint: Checkpoint, route: RouteOptions) -> str:
    """What is known of how much worse the model becomes by what is asked of its routers."""
    from coterie.models.curves import cost_text
    from coterie.models.requests import refuse_unrouted

    if checkpoint.stored is None or checkpoint.stored.router is None:
        refuse_unrouted(route)
        return ""
    usual = {"k": checkpoint.sites[0].top_k, **checkpoint.stored.router.options}
    return cost_text(checkpoint.stored.curves, route, usual)


def _prompt_text(prompt: str | None) -> str | None:
    """The prompt, from the argument or from stdin; None asks for a chat."""
    if prompt == "-" or (prompt is None and not sys.stdin.isatty()):
        return sys.stdin.read()
    return prompt


def _needed(prompts: Prompts, ids: Any, max_new_tokens: int) -> int:
    """Tokens a single answer takes, or a chat's usual room."""
    if ids is None:
        return min(prompts.context or 4096, 4096)
    return int(ids.shape[1]) + prompts.room(ids, max_new_tokens)


def _answer(engine: Engine, ids: Any, sampling: Sampling, *, model: str, as_json: bool, quiet: bool) -> None:
    from coterie.cli.progress import as_record, status_line

    generation = engine.generate(ids, sampling, None if as_json else _show)
    residence = engine.model.coterie
    if as_json:
        typer.echo(json.dumps({"model": model, **as_record(generation, residence)}))
        return
    typer.echo()
    if not quiet:
        typer.echo(status_line(generation, residence), err=True)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
