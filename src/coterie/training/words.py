"""Reading values out of a recipe: each check names the place, what it found and what may stand there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from coterie.errors import OptionError
from coterie.registry import did_you_mean

_CUTOFF = 0.55  # keys of a recipe are short: one wrong letter is much of them


def check_keys(table: Mapping[Any, Any], known: Iterable[str], where: str) -> None:
    """Refuse a key that is not known, with the nearest that is."""
    known = list(known)
    for key in table:
        if key not in known:
            raise OptionError(
                f"{where} has no {key!r}.{did_you_mean(key, known, _CUTOFF)} It may have: {', '.join(known)}."
            )


def table_of(value: Any, where: str) -> Mapping[str, Any]:
    """A mapping; nothing is an empty one."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        _refuse(where, "a group of 'name: value' lines", value)
    return value


def number(value: Any, where: str) -> float:
    """A finite number, as int or float. YAML reads 1e-4 (without a point) and 8/255 as text; they are numbers here."""
    found = fraction(value) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, (int, float)) or not math.isfinite(found):
        _refuse(where, "a number", value)
    return found


def fraction(text: str) -> float:
    """``8/255`` or ``0.03`` as a number; NaN where it is neither."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        return math.nan


def in_255ths(value: float, digits: int = 6) -> str:
    """A change of a pixel as people of the field write it: ``8/255`` where it is whole in 255ths."""
    parts = value * 255
    return f"{round(parts)}/255" if abs(parts - round(parts)) < 1e-6 and round(parts) else f"{value:.{digits}g}"


def whole(value: Any, where: str, least: int | None = None) -> int:
    """A whole number, at least ``least``."""
    found = number(value, where)
    if found != int(found) or (least is not None and found < least):
        _refuse(where, "a whole number" + (f", at least {least}" if least is not None else ""), value)
    return int(found)


def truth(value: Any, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        _refuse(where, "true or false", value)
    return value


def text(value: Any, where: str) -> str:
    """A word or a path."""
    if not isinstance(value, str) or not value.strip():
        _refuse(where, "a word", value)
    return value


def word(value: Any, known: Sequence[str], where: str) -> str:
    """One of the known words."""
    if value is None or value not in known:
        hint = did_you_mean(value, known, _CUTOFF)
        found = "is missing" if value is None else f"cannot be {value!r}"
        raise OptionError(f"{where} {found}.{hint} Write one of: {', '.join(known)}.")
    return str(value)


def numbers(value: Any, where: str) -> tuple[float, ...]:
    """A list of numbers."""
    if not isinstance(value, (list, tuple)) or not value:
        _refuse(where, "a list of numbers, such as [1, 2]", value)
    return tuple(number(each, f"{where}[{place}]") for place, each in enumerate(value))


def texts(value: Any, where: str) -> tuple[str, ...]:
    """A word, or a list of words."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not value:
        _refuse(where, "a word or a list of words", value)
    return tuple(text(each, f"{where}[{place}]") for place, each in enumerate(value))


def _refuse(where: str, wanted: str, found: Any) -> NoReturn:
    raise OptionError(f"{where} must be {wanted}, not {found!r}.")
