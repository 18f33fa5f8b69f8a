"""From words to dataclasses: a YAML file, and tables of it whose keys are fields."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from coterie.errors import OptionError
from coterie.training.words import check_keys, number, table_of, text, truth, whole, word


def recipe_file(path: Path | str, shipped: Mapping[str, Path]) -> Path:
    """A file, or one of those that ship, by name; a file of that name goes first.

    Raises:
        OptionError: there is neither.
    """
    found = Path(path)
    if str(path) in shipped and not found.is_file():
        found = shipped[str(path)]
    if not found.is_file():
        raise OptionError(f"There is no recipe {found}. Write a YAML file, or name one of: {', '.join(shipped)}.")
    return found


def parse_yaml(path: Path) -> Any:
    """What a YAML file says.

    Raises:
        OptionError: it is none; the text says in which line.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        at = getattr(error, "problem_mark", None)
        where = f", line {at.line + 1}" if at is not None else ""
        why = getattr(error, "problem", None) or "it is not UTF-8 text"
        raise OptionError(f"{path}{where} is not YAML: {why}. Write 'name: value' lines, indented evenly.") from error


def filled(kind: Callable[..., Any], words: Any, where: str) -> Any:
    """A dataclass of numbers and words from a table of them."""
    given = table_of(words, where)
    check_keys(given, [field.name for field in dataclasses.fields(kind)], where)  # type: ignore[arg-type]
    values = typed(kind, given, where)
    with placed(where):
        return kind(**values)


@contextmanager
def placed(where: str) -> Iterator[None]:
    """Say where the values of an error stand."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"{where}: {error}") from error


def typed(kind: Any, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values by name, each as the field of the dataclass ``kind`` wants it."""
    hints = get_type_hints(kind)
    return {name: _value(value, hints[name], f"{where}.{name}") for name, value in given.items()}


def _value(value: Any, hint: Any, where: str) -> Any:
    """A value as its annotation wants it."""
    if get_origin(hint) in (Union, types.UnionType):
        if value is None and type(None) in get_args(hint):
            return None
        hint = next(each for each in get_args(hint) if each is not type(None))
    if get_origin(hint) is Literal:
        return word(value, get_args(hint), where)
    readers: dict[Any, Callable[[Any, str], Any]] = {int: whole, float: number, bool: truth, str: text}
    return readers[hint](value, where) if hint in readers else value
