"""`coterie train`: a model from text or images, by a recipe or by a few options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coterie.cli.named_values import named_value
from coterie.cli.shell import INTERRUPTED, one_sentence, stop
from coterie.cli.train_images import check_images_options, is_robust, train_on_images

if TYPE_CHECKING:
    from coterie.cli.progress import Progress
    from coterie.training import Recipe

POCKET = "pocket"
_MODEL, _POCKET = "With --model: another router for a checkpoint", "With pocket alone"
_IMAGES = "With --images: a classifier that learns under attack"


@one_sentence
def train(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file, the name of a recipe that ships ([bold]top-p, adamoe, rmoe, smoe-dropout, thor[/bold]; "
            "with --images [bold]advmoe, at-moe, at-dense, at-s-dense, advmoe-digits[/bold]), or "
            "[bold]pocket[/bold]. Left out where --model is given.",
        ),
    ] = None,
    text: Annotated[
        list[Path] | None,
        typer.Option(metavar="PATH", help="Text files, or directories of .txt and .txt.gz. Several times."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where the model goes: a directory that does not exist.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates. Default: those of the recipe.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of first weights, draws and order of text.")] = None,
    rate: Annotated[
        float | None, typer.Option(help="Learning rate at its peak. Default: the recipe's; 1e-4 for a checkpoint.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows of a step. Default: the recipe's; 8 for a checkpoint.")
    ] = None,
    length: Annotated[
        int | None, typer.Option(min=2, help="Tokens of a window. Default: the recipe's; 256 for a checkpoint.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped training of OUT was.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A checkpoint to give another router.", rich_help_panel=_MODEL),
    ] = None,
    router: Annotated[
        str | None,
        typer.Option(help="Which: top_k, top_p, min_p, adamoe, rmoe, smoe_dropout, thor...", rich_help_panel=_MODEL),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Of the router, such as p=0.5; with --images of the recipe, such as "
            "attack.epsilon=4/255. Several times.", rich_help_panel=_MODEL,
        ),
    ] = None,
    target_mean_experts: Annotated[
        float | None,
        typer.Option(
            min=0, help="Experts per token to hold: calibrated before, controlled while learning.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    freeze: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT", help="router, experts, embeddings, rest, or a pattern of parameter names. Several times.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="A folder of class folders, an .npz, 'x.npy,y.npy', or digits:train (two-domain-digits:train).",
            rich_help_panel=_IMAGES,
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images. Default: the recipe's.", rich_help_panel=_IMAGES)
    ] = None,
    domains: Annotated[
        str | None, typer.Option(help="Which, with commas between. Default: all.", rich_help_panel=_POCKET)
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(
            help="JSON of {domain: {what, licence, attribution}}, for the model card.", rich_help_panel=_POCKET
        ),
    ] = None,
) -> None:  # fmt: skip
    """Train a model on text or images, measure it, write its report and card. [Training.]

    [bold]coterie train top-p --out my-model[/bold] makes a tiny one in a minute, from the sources of Python or --text.

    [bold]coterie train --model DIR --router top_p --target-mean-experts 1.5 --text DIR --out OUT[/bold] gives a
    checkpoint another router and fine-tunes it.

    [bold]coterie train advmoe --images DATA --out OUT[/bold] trains a network of convolutional experts under attack.

    Stopped and resumed it gives the same bits.
    """
    from coterie.cli.progress import Progress
    from coterie.errors import OptionError
    from coterie.training.memory import keep_memory

    target = out or Path(f"my-{'model' if what is None else Path(what).stem}")
    alone = {"--router": router, "--option": option, "--target-mean-experts": target_mean_experts, "--freeze": freeze}
    changes = {"steps": steps, "seed": seed, "rate": rate, "batch": batch, "length": length, "text": text}
    of_images = images is not None or epochs is not None or is_robust(what)
    if of_images:
        text_alone = {"--text": text, "--steps": steps, "--length": length, "--domains": domains, "--sources": sources}
        check_images_options(what, images, {**text_alone, **alone, "--model": model, "--option": None})
    else:
        _check_one(what, model)
        _check_together(what, model, alone, {"--domains": domains, "--sources": sources})
    keep_memory()
    try:
        with Progress(quiet) as progress:
            if of_images:
                now = {"epochs": epochs, "seed": seed, "rate": rate, "batch": batch}
                told = train_on_images(str(what), str(images), target, option or (), now, resume, progress)
            elif what == POCKET:
                told = _pocket(target, domains, sources, changes, resume, progress)
            else:
                recipe = _from_options(str(model), alone) if what is None else _from_file(what)
                told = _by_recipe(recipe, changes, target, resume, progress)
    except KeyboardInterrupt:
        stop(_how_to_go_on(target), INTERRUPTED)
    except OSError as error:
        raise OptionError(f"{target} cannot be written: {error}. Choose another --out, or make room.") from error
    if not quiet:
        hint = f'coterie run {target} "Once"' if not of_images else f"coterie attack {target} TEST_IMAGES"
        print(f"{told} Try: {hint}", file=sys.stderr)


def _check_one(what: str | None, model: str | None) -> None:
    from coterie.errors import OptionError

    if (what is None) == (model is None):
        raise OptionError(
            "Give a recipe (coterie train top-p) or a checkpoint (--model DIR --router top_p): one of them."
        )


def _check_together(what: str | None, model: str | None, by_model: dict[str, Any], by_pocket: dict[str, Any]) -> None:
    """Refuse options that would change nothing."""
    from coterie.errors import OptionError

    if model is None and (given := [name for name, value in by_model.items() if value is not None]):
        raise OptionError(f"{', '.join(given)} go with --model. In a recipe, write them into the file.")
    if what != POCKET and (given := [name for name, value in by_pocket.items() if value is not None]):
        raise OptionError(f"{', '.join(given)} are for `coterie train pocket` alone. Leave them out.")
    if model is not None and by_model["--router"] is None:
        raise OptionError("--model needs --router: which router to give it, such as --router top_p.")


def _pocket(
    out: Path, domains: str | None, sources: Path | None, changes: dict[str, Any], resume: bool, progress: Progress
) -> str:  # fmt: skip
    from coterie.errors import OptionError
    from coterie.training.pocket import recipe_for, train_pocket

    if len(changes["text"] or ()) != 1:
        raise OptionError("coterie train pocket needs one --text DIR, which holds <domain>.train.txt and so on.")
    if given := [f"--{name}" for name in ("rate", "batch", "length") if changes[name] is not None]:
        raise OptionError(
            f"{', '.join(given)} are part of the pocket model's recipe and stay as they are. Leave them out."
        )
    train_pocket(
        out, changes["text"][0], domains=[name.strip() for name in domains.split(",")] if domains else None,
        sources=sources, recipe=recipe_for(changes["steps"], changes["seed"] or 0), resume=resume,
        progress=progress.training,
    )  # fmt: skip
    return f"{out / 'README.md'} has the measurements."


def _from_file(what: str) -> Recipe:
    from coterie.training import read_recipe

    return read_recipe(what)


def _from_options(model: str, options: dict[str, Any]) -> Recipe:
    """A recipe of the options, through the same checks as a file."""
    from coterie.training.recipe_read import recipe_of

    words: dict[str, Any] = {
        "model": {"from": model},
        "router": {
            "name": options["--router"],
            **dict(named_value(each, "p=0.5") for each in options["--option"] or ()),
        },
        "data": {"length": 256},
        "training": {"steps": 200, "batch": 8, "rate": 1e-4, "warmup": 20, "decay": 1.0, "weight_decay": 0.01},
    }
    if options["--target-mean-experts"] is not None:
        words["steering"] = {"mean_experts": options["--target-mean-experts"]}
    if options["--freeze"]:
        words["groups"] = {"freeze": list(options["--freeze"])}
    return recipe_of(words, f"{Path(model).name}-{options['--router']}")


def _by_recipe(recipe: Recipe, changes: dict[str, Any], out: Path, resume: bool, progress: Progress) -> str:
    from coterie.jobs.locate import POCKET as SHIPPED
    from coterie.jobs.locate import locate
    from coterie.training import changed, train_recipe

    recipe = changed(recipe, source=str(locate(SHIPPED)) if recipe.model.source == SHIPPED else None, **changes)
    outcome = train_recipe(recipe, out, resume=resume, progress=progress.training, say=progress.say)
    before, after = outcome.original or outcome.before, outcome.after
    return (
        f"{after.bits_per_byte:.3f} bits per byte on unseen text (before: {before.bits_per_byte:.3f}), "
        f"{after.mean_experts:.2f} experts per token (before: {before.mean_experts:.2f}). See {out / 'report.html'}."
    )


def _how_to_go_on(out: Path) -> str:
    from coterie.training.places import work_of
    from coterie.training.trainer import last_checkpoint

    last = last_checkpoint(work_of(out))
    if last is None:
        return "Stopped before the first checkpoint; nothing is kept."
    return f"Stopped. Type the same command with --resume to go on from step {last.name.split('-')[1]}."
