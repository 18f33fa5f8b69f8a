"""Six kinds of text that every machine with Python has, as unlike each other as experts could wish."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path

from coterie.studies.corpus import SHARES, Corpus, plain_text
from coterie.training.text import python_sources

SIZE = 500_000  # bytes of a domain


def six_domains(given: Path | None, size: int = SIZE) -> Corpus:
    """``size`` bytes of each of `DOMAINS` one after another in every part; or text that the user gave.

    Raises:
        OptionError: as of `coterie.studies.plain_text`.
    """
    if given is not None:
        return plain_text(given)
    parts: dict[str, list[bytes]] = {split: [] for split in SHARES}
    for make in DOMAINS.values():
        data = make(size).encode("utf-8")[:size]
        start = 0.0
        for split, share in SHARES.items():
            parts[split].append(data[round(start * len(data)) : round((start + share) * len(data))])
            start += share
    source = f"made of Python's standard library: {', '.join(DOMAINS)}"
    return Corpus(source, {split: b"".join(each) for split, each in parts.items()})


def _prose(size: int) -> str:
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return text * -(-size // len(text))


def _names(size: int) -> str:
    named = ((code, unicodedata.name(chr(code), "")) for code in range(0x20, 0x20000))
    lines = [f"U+{code:04X} {name}" for code, name in named if name]
    random.Random(1).shuffle(lines)
    return "\n".join(lines)[:size]


def _sums(size: int) -> str:
    draw = random.Random(2)
    return _filled(size, lambda: _sum(draw.randint(0, 999), draw.randint(0, 999), draw.choice("+-*")))


def _sum(a: int, b: int, sign: str) -> str:
    return f"{a} {sign} {b} = {({'+': a + b, '-': a - b, '*': a * b})[sign]}\n"


def _rows(size: int) -> str:
    draw = random.Random(3)
    words = ["otter", "heron", "badger", "lizard", "magpie", "beetle", "salmon", "weasel"]

    def row() -> str:
        number = draw.randint(1, 99999)
        fields = {
            "id": number,
            "name": draw.choice(words),
            "weight": round(draw.random() * 9, 2),
            "wild": number % 2 > 0,
        }
        return json.dumps(fields) + "\n"

    return _filled(size, row)


def _digests(size: int) -> str:
    count = iter(range(size))
    return _filled(size, lambda: hashlib.sha256(str(next(count)).encode()).hexdigest() + "\n")


def _filled(size: int, line: Callable[[], str]) -> str:
    parts, length = [], 0
    while length < size:
        parts.append(line())
        length += len(parts[-1])
    return "".join(parts)


DOMAINS: Mapping[str, Callable[[int], str]] = {
    "source code": python_sources, "prose": _prose, "Unicode names": _names, "sums": _sums, "JSON rows": _rows,
    "digests": _digests,
}  # fmt: skip
