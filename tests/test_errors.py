"""The error tree: the drawing is the truth, and every leaf can be raised and caught by its root."""

from __future__ import annotations

import inspect
import re

import pytest

from coterie import errors
from coterie.errors import CoterieError, MissingExtraError, OptionError, RoutingError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]


def drawn() -> dict[str, str]:
    """Child -> parent, as the module's docstring draws them."""
    parents, stack = {}, ["CoterieError"]
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│ ]*)[├└]── (\w+)", line):
            depth = len(match[1]) // 4 + 1
            stack = [*stack[:depth], match[2]]
            parents[match[2]] = stack[-2]
    return parents


def test_the_drawing_is_the_tree() -> None:
    found = {c.__name__: c.__mro__[1].__name__ for c in CLASSES if c is not CoterieError}
    assert found == drawn()
    assert len(found) >= 9


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_every_error_is_a_coterie_error_with_an_exit_code(kind: type[CoterieError]) -> None:
    assert issubclass(kind, CoterieError)
    assert kind.__doc__
    assert 1 <= kind.exit_code <= 125


@pytest.mark.parametrize("kind", [c for c in CLASSES if c is not MissingExtraError], ids=lambda c: c.__name__)
def test_the_text_is_what_was_said(kind: type[CoterieError]) -> None:
    with pytest.raises(CoterieError, match=r"^what is wrong, what to do\.$"):
        raise kind("what is wrong, what to do.")


def test_they_are_the_builtin_errors_a_caller_expects() -> None:
    assert issubclass(OptionError, ValueError)
    assert issubclass(RoutingError, ValueError)
    assert issubclass(errors.StoreError, RuntimeError)
    assert issubclass(MissingExtraError, ImportError)


def test_a_missing_extra_says_what_to_type() -> None:
    assert str(MissingExtraError("FastAPI", extra="serve")) == (
        "FastAPI is not installed. Type: pip install 'coterie[serve]'"
    )
