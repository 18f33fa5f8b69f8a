"""`coterie quantize`: experts as integers of 8 or 4 bits."""

from __future__ import annotations

from typing import Annotated

import typer

from coterie.cli.run import Json, Memory, Model, Revision
from coterie.cli.shell import one_sentence
from coterie.cli.surgery_options import (
    Out,
    Report,
    Resume,
    SkipLayers,
    Statistics,
    Text,
    at_work,
    conclude,
    layer_numbers,
)


@one_sentence
def quantize(
    model: Model,
    out: Out,
    bits: Annotated[
        str,
        typer.Option(
            metavar="BITS", help="int8, int4, or mixed: more where an expert is used more and would miss more."
        ),
    ] = "int4",
    average_bits: Annotated[
        float | None, typer.Option(metavar="BITS", help="mixed: bits per number, scales counted. Default: 4.5.")
    ] = None,
    group: Annotated[
        int | None, typer.Option(metavar="N", help="int4: neighbours that share a scale. Default: 32.")
    ] = None,
    statistics: Statistics = None,
    text: Text = None,
    skip_layers: SkipLayers = None,
    report: Report = None,
    memory: Memory = None,
    resume: Resume = False,
    revision: Revision = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Round the matrices of MODEL's experts to integers with scales; the rest stays as it is. [Lossy.]

    Smaller files, and smaller experts for coterie run --memory. Without a text all experts and inputs count alike.
    """
    from coterie.jobs.shrinking.quantize import quantize as make

    with at_work(out, as_json, report) as told:
        made = make(
            model, out, bits, average_bits=average_bits, group=group, statistics=statistics, texts=text or (),
            memory=memory, skip_layers=layer_numbers(skip_layers), revision=revision, resume=resume,
            say=told.say, show=told.show,
        )  # fmt: skip
    conclude(made, model, out, report=report, as_json=as_json)
