"""Whether a value from a recipe is of the kind that a preset's argument wants."""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from coterie.errors import OptionError

_WHOLE = 2**63


def check_values(preset: Callable[..., Any], options: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
    """Look at every option by its annotation: a number, a word, a truth value, or None where that is allowed.

    Args:
        preset: whose arguments they are.
        options: as given, all of names that are known.
        extra: annotations of options that are not the preset's own.

    Raises:
        OptionError: a value of another kind; says what is wanted.
    """
    hints = {**extra, **get_type_hints(preset)}
    for option, value in options.items():
        if not _fits(value, hints[option]):
            raise OptionError(f"{option}={value!r} is not allowed: write {_wanted(hints[option])}.")


def _fits(value: Any, hint: Any) -> bool:
    if get_origin(hint) in (Union, types.UnionType):
        return any(_fits(value, each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return isinstance(value, str | int) and value in get_args(hint)
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if isinstance(value, bool):
        return False
    if hint is int:
        return isinstance(value, int) and -_WHOLE <= value < _WHOLE
    return isinstance(value, int | float) and math.isfinite(value)


def _wanted(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_wanted(each) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(hint, "nothing")
