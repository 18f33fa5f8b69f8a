"""Sizes as people write them: "6GiB" <-> 6442450944.

Binary units (KiB, MiB, GiB, TiB) are powers of 1024, decimal ones (kB, MB, GB, TB) powers of 1000;
a bare number is bytes.
"""

from __future__ import annotations

import re
from fractions import Fraction

from coterie.errors import BudgetError

_FACTORS = {"": 1, "b": 1}
_FACTORS |= {f"{p}ib": 1024 ** (i + 1) for i, p in enumerate("kmgt")}
_FACTORS |= {f"{p}b": 1000 ** (i + 1) for i, p in enumerate("kmgt")}
_FACTORS |= {p: 1024 ** (i + 1) for i, p in enumerate("kmgt")}
# eighteen digits are more than any memory; without a limit Python refuses the number with an error of its own
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str | int) -> int:
    """A size in bytes from text such as ``6GiB``, ``1.5 GB``, ``512M`` or ``1048576``.

    Raises:
        BudgetError: the text is no size, the unit is unknown, or the size is not positive.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return _positive(text, str(text))
    match = _SIZE.fullmatch(str(text))
    if match is None or match[2].lower() not in _FACTORS:
        raise BudgetError(
            f"{text!r} is not a size. Write a number with a unit, such as 6GiB, 512MiB, 1.5GB, or plain bytes."
        )
    return _positive(int(Fraction(match[1]) * _FACTORS[match[2].lower()]), str(text))


def format_bytes(count: float) -> str:
    """Bytes for people: three digits and a binary unit, ``format_bytes(6442450944) == '6.00 GiB'``."""
    size, unit = abs(float(count)), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    digits = 0 if unit == "B" else 2 if size < 10 else 1 if size < 100 else 0
    return f"{'-' if count < 0 else ''}{size:.{digits}f} {unit}"


def _positive(count: int, text: str) -> int:
    if count <= 0:
        raise BudgetError(f"{text!r} is not a usable size. Give more than zero bytes, such as 6GiB.")
    return count
