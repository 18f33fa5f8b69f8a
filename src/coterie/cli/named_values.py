"""Options that are typed as NAME=VALUE, such as --option p=0.5."""

from __future__ import annotations

from typing import Any

from coterie.errors import OptionError

__all__ = ["named_value"]


def named_value(text: str, example: str) -> tuple[str, Any]:
    """The name and the value, as YAML reads it.

    Args:
        text: what was typed.
        example: what to type, for errors; where its name has a point, so must others, and a value.

    Raises:
        OptionError: no name, or a value that YAML does not read.
    """
    import yaml  # type: ignore[import-untyped]

    name, equals, value = text.partition("=")
    in_section = "." in example.partition("=")[0]
    if not equals or not name or (in_section and ("." not in name or not value.strip())):
        form = "SECTION.NAME=VALUE" if in_section else "NAME=VALUE"
        raise OptionError(f"--option {text!r} is not {form}. Write it so: --option {example}")
    try:
        return name.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise OptionError(
            f"--option {text!r} cannot be read: {value!r} is no value. Write it so: --option {example}"
        ) from error
