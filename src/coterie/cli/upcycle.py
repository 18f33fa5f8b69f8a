"""`coterie upcycle`: dense models made into a mixture, and one more expert for a mixture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.run import Json, Memory, Revision
from coterie.cli.shell import one_sentence
from coterie.cli.surgery_options import Container, Out, Report, Resume, at_work, conclude, refuse

if TYPE_CHECKING:
    from coterie.jobs.growing.upcycle_plan import UpcyclePlan

COPIES, SEVERAL, ADD = "Copies of one model", "Several models of one base", "One more expert for a mixture"


@one_sentence
def upcycle(
    model: Annotated[
        str, typer.Argument(help="A dense checkpoint; a YAML file of mergekit-moe's form; with --add one with experts.")
    ],
    out: Out,
    experts: Annotated[
        int | None, typer.Option("--experts", "-e", metavar="N", min=1, help="Copies.", rich_help_panel=COPIES)
    ] = None,
    noise: Annotated[
        float,
        typer.Option(min=0, help="Added to copies, as a share of the weights' size.", rich_help_panel=COPIES),
    ] = 0.0,
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="A model whose feed-forwards are an expert; often.", rich_help_panel=SEVERAL),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="What the expert in the same place is for; @FILE has one a line. With --add all are for the new one.",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option(
            help="hidden (what prompts look like in each layer), hidden_last, cheap_embed, random or zero. "
            "Default: hidden where there are prompts, else random.",
            rich_help_panel=SEVERAL,
        ),
    ] = None,
    add: Annotated[
        str | None,
        typer.Option(metavar="DENSE", help="The dense model that becomes one.", rich_help_panel=ADD),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="What the new expert is not for; @FILE has one a line.", rich_help_panel=ADD),
    ] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="Experts per token. Default: 2.")] = None,
    family: Annotated[
        str | None,
        typer.Option(
            help="To write in: mixtral, qwen2_moe, qwen3_moe, flex_olmo, granitemoe, or coterie (MODEL's own format "
            "with coterie.json). Default: by what MODEL is."
        ),
    ] = None,
    text: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A text to measure perplexity on; may be given often.")
    ] = None,
    memory: Memory = None,
    report: Report = None,
    container: Container = "auto",
    seed: Annotated[int | None, typer.Option(min=0, help="Of noise and of random rows.")] = None,
    resume: Resume = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make dense models into a mixture of experts. [Exact for copies without noise; else lossy.]

    [bold]coterie upcycle MODEL --experts 8 --noise 0.01 --out DIR[/bold] copies; train it.

    [bold]coterie upcycle BASE --expert CODER --prompt "def main():" --expert WRITER --prompt "Once" --out DIR[/bold]

    [bold]coterie upcycle MIXTURE --add DENSE --prompt "def main():" --out DIR[/bold] adds an expert.
    """
    from coterie.jobs.growing.add_expert import add_expert
    from coterie.jobs.growing.upcycle import upcycle as make

    with at_work(out, as_json, report) as told:
        common: dict[str, Any] = {
            "texts": text or (), "memory": memory, "revision": revision, "resume": resume, "say": told.say,
            "show": told.show,
        }  # fmt: skip
        if add is not None:
            refuse({"--experts": experts, "--expert": expert, "--gates": gates, "--k": k, "--family": family}, "--add")
            made = add_expert(
                model, add, out, prompts=_texts(prompt), negative=_texts(negative),
                container=container, **common,  # type: ignore[arg-type]
            )  # fmt: skip
        else:
            refuse({"--negative": negative}, "another task than --add")
            plan = _plan(model, experts, noise, expert or [], prompt or [], gates, k, seed)
            made = make(plan, out, family=family, **common)
    conclude(made, model, out, report=report, as_json=as_json, hint=f"Try it: coterie run {out} --raw")


def _plan(
    model: str, experts: int | None, noise: float, names: list[str], prompts: list[str], gates: Any, k: int | None,
    seed: int | None,
) -> UpcyclePlan:  # fmt: skip
    """What was typed as a plan."""
    from dataclasses import replace

    from coterie.errors import OptionError
    from coterie.jobs.growing.upcycle_plan import ExpertSource, UpcyclePlan, copies_of, read_plan

    changes = {name: value for name, value in {"k": k, "seed": seed, "gates": gates}.items() if value is not None}
    if model.endswith((".yaml", ".yml")):
        refuse({"--experts": experts, "--expert": names, "--prompt": prompts, "--noise": noise}, "a file")
        return replace(read_plan(model), **changes)
    if names and experts is not None:
        raise OptionError("--experts counts copies of MODEL, --expert names other models: give one of them.")
    if experts is not None:
        refuse({"--prompt": prompts}, "copies, which nothing tells apart")
        return replace(copies_of(model, experts, min(2, experts), noise=noise), **changes)
    if not names:
        raise OptionError("Say what the experts are: --experts 8 for copies, or --expert DIR for each model.")
    if prompts and len(prompts) != len(names):
        raise OptionError(
            f"There are {len(names)} experts and {len(prompts)} prompts: give one for each, in the same order. "
            "Several for one expert go into a file, one a line: --prompt @prompts.txt"
        )
    told = [tuple(_texts([each])) for each in prompts] or [()] * len(names)
    sources = tuple(ExpertSource(name, each, noise=noise) for name, each in zip(names, told, strict=True))
    start = changes.pop("gates", "hidden" if prompts else "random")
    return UpcyclePlan(model, sources, changes.pop("k", min(2, len(names))), start, **changes)


def _texts(given: list[str] | None) -> list[str]:
    """Prompts as typed, or the lines of files."""
    from coterie.errors import OptionError

    texts: list[str] = []
    for each in given or []:
        if not each.startswith("@"):
            texts.append(each)
            continue
        try:
            lines = Path(each[1:]).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionError(
                f"{each[1:]} cannot be read as prompts ({error}). Give a UTF-8 text, one a line."
            ) from error
        texts += [line for line in lines if line.strip()]
    return texts
