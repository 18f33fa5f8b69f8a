"""`coterie attack`: how well a classifier of images bears attacks, and whether to believe it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from coterie.cli.run import Json
from coterie.cli.shell import one_sentence, stop

ALSO = "More attacks"


@one_sentence
def attack(
    model: Annotated[str, typer.Argument(help="A directory with a convolutional network, as coterie train writes it.")],
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled images that it has not learned from: a folder with a folder per class, an .npz, "
            "'x.npy,y.npy', or a name such as digits:test.",
        ),
    ],
    epsilon: Annotated[
        str, typer.Option(metavar="E", help="Largest change of a pixel, of values in \\[0, 1].")
    ] = "8/255",
    steps: Annotated[int, typer.Option(help="Steps of each attack.")] = 50,
    step_size: Annotated[
        str | None, typer.Option(metavar="E", help="Of a step. Default: a quarter of epsilon, so 2/255 of 8/255.")
    ] = None,
    restarts: Annotated[int, typer.Option(help="Starts of each attack; one that works is enough.")] = 1,
    images: Annotated[int, typer.Option(metavar="N", help="Images to attack, drawn by the seed.")] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Draws images and starts.")] = 0,
    batch: Annotated[int, typer.Option(help="Images at a time.")] = 128,
    size: Annotated[int | None, typer.Option(metavar="N", help="Resize pictures to N pixels a side.")] = None,
    art: Annotated[
        bool,
        typer.Option(
            "--art", rich_help_panel=ALSO,
            help="Also the Adversarial Robustness Toolbox: its projected gradient, and AutoAttack.",
        ),
    ] = False,
    released: Annotated[
        bool,
        typer.Option(
            "--released", rich_help_panel=ALSO,
            help="Also the evaluation in AdvMoE's published code, which is weaker. It does not count.",
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda ... Default: the accelerator, where there is one.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with pictures of the images.")
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Attack MODEL on DATA end to end, by its router, by its experts, by every route, then doubt the result. [Exact.]

    Ends with exit code 1 where a check says that the robust accuracy is not to be trusted. MODEL is not changed.
    """
    from coterie.cli.progress import Progress
    from coterie.jobs.attacking import Threat, parse_fraction
    from coterie.jobs.attacking import attack as run
    from coterie.jobs.output import check_output

    if report is not None:
        check_output(report)
    step = None if step_size is None else parse_fraction(step_size, "--step-size")
    threat = Threat(parse_fraction(epsilon, "--epsilon"), steps, step, restarts, images, seed, batch)
    with Progress(as_json) as progress:
        found = run(
            model, data, threat, art=art, released=released, size=size, device=device or "auto", say=progress.say
        )  # fmt: skip
    if report is not None:
        found.write_html(report)
    if as_json:
        typer.echo(json.dumps(found.as_record(), allow_nan=False))
    else:
        from coterie.cli.sheet import show

        show(found.sheet())
        typer.echo(f"\nWritten: {report}" if report else "\nPictures: --report attack.html writes a page with them.")
    if not found.trusted:
        stop("The robust accuracy is not to be trusted; the checks that failed say why.", found.exit_code)
