"""Values that change while a model learns, as functions of the global step. Nothing is stored: a resumed run, or
another machine, computes the same value from the step.

    constant     {value: 2}                        or just the number
    linear       {start: 4, end: 8}
    cosine       {start: 4, end: 8}                a quarter wave: slow at first, fast at the end
    exponential  {start: 4, end: 8}                what is left shrinks by 1% three hundred times
    multi_step   {values: [1, 2, 4, 8]}            equal parts of the run
    piecewise    {values: [0.02, 1e-4], at: [0.5]} a value from each share of the run on

The first five are those of SMoE-Dropout (arXiv 2303.01610); each rises or falls. ``until`` makes linear, cosine and
exponential arrive at that share of the run instead of its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from coterie.errors import OptionError
from coterie.training.words import check_keys, number, numbers, word

Shape = Literal["constant", "linear", "cosine", "exponential", "multi_step", "piecewise"]
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "constant": ("value",), "linear": ("start", "end", "until"), "cosine": ("start", "end", "until"),
    "exponential": ("start", "end", "until"), "multi_step": ("values",), "piecewise": ("values", "at"),
}  # fmt: skip


@dataclass(frozen=True)
class Schedule:
    """A value for every step of a run. Make one with `constant`, `linear` and so on, or `schedule` from words.

    Attributes:
        shape: how it gets from the first of ``values`` to the last.
        values: start and end, or every value in turn.
        at: piecewise: the share of the run at which each value but the first begins.
        until: the share of the run at which the end is reached.
    """

    shape: Shape
    values: tuple[float, ...]
    at: tuple[float, ...] = field(default=())
    until: float = 1.0

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise OptionError(f"A {self.shape} schedule needs finite values, not {list(self.values)}.")
        if not 0 < self.until <= 1:
            raise OptionError(f"until={self.until} is no share of the run. Write a number above 0, at most 1.")
        if self.shape == "piecewise" and len(self.at) != len(self.values) - 1:
            raise OptionError(
                f"A piecewise schedule of {len(self.values)} values needs {len(self.values) - 1} shares in 'at', "
                f"where each but the first begins; it has {len(self.at)}."
            )
        if list(self.at) != sorted(set(self.at)) or not all(0 < share < 1 for share in self.at):
            raise OptionError(f"at={list(self.at)} must be shares of the run between 0 and 1 that rise.")

    def value(self, step: int, total: int) -> float:
        """At ``step`` (updates done before it) of ``total``; beyond the last step that of the last."""
        return self._part(step, total, rounded=False)

    def whole(self, step: int, total: int) -> int:
        """The same as a whole number: what has been added to the start is rounded half to even, within the range.

        Raises:
            OptionError: a value of the schedule is no whole number.
        """
        if not all(float(value).is_integer() for value in self.values):
            raise OptionError(f"A whole number is scheduled, so its values must be whole, not {list(self.values)}.")
        return int(self._part(step, total, rounded=True))

    def _part(self, step: int, total: int, *, rounded: bool) -> float:
        step, total = max(0, step), max(1, total)
        if self.shape in ("multi_step", "piecewise", "constant"):
            return self.values[self._place(step, total)]
        first, last = self.values[0], self.values[-1]
        end = max(1, round(total * self.until))
        if step >= end:
            return last
        from_start, share = _COURSES[self.shape](step, end)
        change = (last - first if from_start else first - last) * share
        value = (first if from_start else last) + (round(change) if rounded else change)
        return min(max(value, min(first, last)), max(first, last))

    def _place(self, step: int, total: int) -> int:
        if self.shape == "multi_step":
            return min(step * len(self.values) // total, len(self.values) - 1)
        return sum(step >= share * total for share in self.at)


def _linear(step: int, total: int) -> tuple[bool, float]:
    """(is the change counted from the start, which share of it): the published formulas round it that way round."""
    return True, step / total


def _cosine(step: int, total: int) -> tuple[bool, float]:
    return False, math.cos(math.pi * step / (2 * total))


def _exponential(step: int, total: int) -> tuple[bool, float]:
    # in steps of total // 300, as published; a run of fewer than 300 steps has a part of it per step
    times = step // (total // 300) if total >= 300 else 300 * step // total
    return False, 0.99**times


_COURSES = {"linear": _linear, "cosine": _cosine, "exponential": _exponential}


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return Schedule("constant", (value,))


def linear(start: float, end: float, *, until: float = 1.0) -> Schedule:
    """Evenly from ``start`` to ``end``."""
    return Schedule("linear", (start, end), until=until)


def cosine(start: float, end: float, *, until: float = 1.0) -> Schedule:
    """From ``start`` to ``end`` along a quarter of a cosine: slow at first."""
    return Schedule("cosine", (start, end), until=until)


def exponential(start: float, end: float, *, until: float = 1.0) -> Schedule:
    """From ``start`` towards ``end``, fast at first; the last few per cent of the way are made at the end."""
    return Schedule("exponential", (start, end), until=until)


def multi_step(values: Sequence[float]) -> Schedule:
    """Each value for an equal part of the run."""
    return Schedule("multi_step", tuple(values))


def piecewise(values: Sequence[float], at: Sequence[float]) -> Schedule:
    """The first value, and each other from its share of the run on."""
    return Schedule("piecewise", tuple(values), tuple(at))


def schedule(words: Any, where: str = "the schedule") -> Schedule:
    """From what a recipe says: a number, or a mapping with ``shape`` and its fields.

    Args:
        words: as parsed from YAML.
        where: what an error calls this place.

    Raises:
        OptionError: an unknown shape or field (the nearest is suggested), a missing or wrong value.
    """
    if isinstance(words, Schedule):
        return words
    if not isinstance(words, Mapping):
        return constant(number(words, where))
    shape: Any = word(words.get("shape"), get_args(Shape), f"{where}.shape")
    fields = _FIELDS[shape]
    check_keys(words, ("shape", *fields), where)
    if missing := [name for name in fields if name not in words and name != "until"]:
        raise OptionError(f"{where}: a {shape} schedule needs {' and '.join(missing)}.")
    until = number(words.get("until", 1), f"{where}.until")
    if "start" in fields:
        ends = (number(words["start"], f"{where}.start"), number(words["end"], f"{where}.end"))
        return Schedule(shape, ends, until=until)
    if shape == "constant":
        return constant(number(words["value"], f"{where}.value"))
    at = numbers(words["at"], f"{where}.at") if "at" in fields else ()
    return Schedule(shape, numbers(words["values"], f"{where}.values"), at)
