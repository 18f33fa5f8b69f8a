"""`coterie merge MODEL --with OTHER=WEIGHT`: the mean of several models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coterie.cli.surgery_options import at_work, conclude
from coterie.errors import OptionError

__all__ = ["merge_models", "weights_of"]


def merge_models(
    model: str, others: Sequence[str], out: Path, *, weight: float | None, normalise: bool | None,
    texts: Sequence[Path], as_json: bool, report: Path | None, **options: Any,
) -> None:  # fmt: skip
    """Make the mean and say what it is."""
    from coterie.jobs.shrinking.average import average_models

    with at_work(out, as_json, report) as told:
        made = average_models(
            model, weights_of(others), out, weight=1.0 if weight is None else weight,
            normalise=normalise is not False, texts=texts, say=told.say, show=told.show, **options,
        )  # fmt: skip
    dense = None if made.made.after.experts else "Plain transformers loads it."
    conclude(made, model, out, report=report, as_json=as_json, hint=dense)


def weights_of(others: Sequence[str]) -> dict[str, float]:
    """Model -> weight of texts such as DIR or DIR=0.5.

    Raises:
        OptionError: a weight that is no number, or a model that is named twice.
    """
    found: dict[str, float] = {}
    for each in others:
        name, sign, number = each.rpartition("=")
        if not sign or Path(each).expanduser().exists():
            name, number = each, "1"
        try:
            weight = float(number)
        except ValueError:
            raise OptionError(f"--with {each}: {number!r} is no number. Write DIR=0.5, or DIR alone for 1.") from None
        if not name:
            raise OptionError(f"--with {each} names no model. Write DIR=0.5, or DIR alone for 1.")
        if name in found:
            raise OptionError(f"--with {name} is there twice. Give it once, with its whole weight.")
        found[name] = weight
    return found
