"""What a model's request-time options cost: bits per byte on unseen text, at one value after another."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from coterie.errors import OptionError
from coterie.models.attach import session_of
from coterie.models.session import Usage
from coterie.training.measure import cross_entropy


@dataclass(frozen=True)
class Worth:
    """Of a model on a text, under some options.

    Attributes:
        bits_per_byte: of the text, each token but the first predicted once.
        mean_experts: experts per token and layer; 0 for a dense model.
    """

    bits_per_byte: float
    mean_experts: float


@dataclass(frozen=True)
class Unseen:
    """Text to measure on.

    Attributes:
        ids: [N] int64.
        num_bytes: of the text they stand for.
        length: tokens of context.
    """

    ids: Tensor
    num_bytes: int
    length: int


def worth(model: Any, text: Unseen, options: Mapping[str, Any] | None = None) -> Worth:
    """Measure a model under request-time options, such as ``{"k": 4}``. Its mode is put to eval and back.

    Raises:
        OptionError: the model has no routers of ours and options are given, or a value is out of range.
    """
    session = session_of(model)
    if session is None and options:
        raise OptionError(f"{', '.join(options)} cannot be asked for: this model has no router of ours.")
    with _asked(session, options or {}) as usage:
        nats = cross_entropy(model, text.ids, length=text.length, stride=text.length)
        bits = nats * (len(text.ids) - 1) / math.log(2) / text.num_bytes
        return Worth(bits, usage().mean_experts)


def measure_curve(
    model: Any, text: Unseen, option: str, values: Sequence[float], say: Callable[[str], None] | None = None
) -> list[tuple[float, Worth]]:
    """`worth` at each value of an option, in the order given. Blocks: one pass over the text for each.

    Raises:
        OptionError: see `worth`.
    """
    points = []
    for value in values:
        if say is not None:
            say(f"Measuring {option}={value:g}")
        points.append((value, worth(model, text, {option: value})))
    return points


@contextmanager
def _asked(session: Any, options: Mapping[str, Any]) -> Iterator[Callable[[], Usage]]:
    """Forwards within ask for ``options``; the call tells what they used."""
    if session is None:
        yield Usage
        return
    base, counting, usage = session.base, session.counting, session.usage
    session.base = replace(base, overrides={**base.overrides, **options})
    session.counting, session.usage = True, Usage()
    try:
        yield lambda: session.usage
    finally:
        session.base, session.counting, session.usage = base, counting, usage
