"""Options of verbs whose result may learn from what it was made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coterie.errors import OptionError

if TYPE_CHECKING:
    from coterie.jobs.finishing.recover import Recovered

RECOVERY = "Recovery: the result learns from MODEL (training)"

DistillSteps = Annotated[
    int | None,
    typer.Option(
        metavar="N", min=1, help="Steps of distillation afterwards, routers frozen.", rich_help_panel=RECOVERY
    ),
]
DistillText = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE", help="What to learn on; may be given often. Default: --text.", rich_help_panel=RECOVERY
    ),
]
DistillRate = Annotated[
    float, typer.Option(metavar="RATE", help="Learning rate at its peak.", rich_help_panel=RECOVERY)
]


def check_distillation(steps: int | None, texts: Sequence[Path] | None, fallback: Sequence[Path] | None) -> None:
    """Whether what was typed can be done, before anything long begins.

    Raises:
        OptionError: steps without a text, or a text without steps.
    """
    if texts and steps is None:
        raise OptionError("--distill-text says what to learn on; say for how long with --distill-steps N.")
    if steps is not None and not (texts or fallback):
        raise OptionError("--distill-steps needs a text to learn on. Give --distill-text FILE.")
    for path in (texts or fallback or ()) if steps is not None else ():
        if not path.exists():
            raise OptionError(f"{path} does not exist. Give text files to learn on.")


def recovered(
    out: Path, model: str, steps: int | None, texts: Sequence[Path] | None, rate: float, *,
    memory: str | None, revision: str | None, say: Callable[[str], None],
) -> Recovered | None:  # fmt: skip
    """Distil the checkpoint at ``out`` from ``model``, where steps were asked for; the teacher runs in ``memory``."""
    if steps is None:
        return None
    from coterie.jobs.finishing.recover import recover

    return recover(out, model, list(texts or ()), steps, rate=rate, memory=memory, revision=revision, say=say)
