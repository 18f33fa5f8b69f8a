"""The text of a study: what the user gave, or text that every machine with Python has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from coterie.errors import OptionError
from coterie.training import read_domains, read_text
from coterie.training.text import library_files

SIZE = 4_000_000  # bytes
SHARES = {"train": 0.90, "valid": 0.05, "test": 0.05}
PREFERRED = "literature"  # plain English, where a directory has several kinds of text
_BLOCK = 1 << 14
_ABOUT = "about.json"


@dataclass(frozen=True)
class Corpus:
    """Bytes by the name of their part, usually train, valid and test.

    Attributes:
        source: what it is and where it is from, for people.
        parts: the bytes.
    """

    source: str
    parts: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """SHA-256 over names and bytes."""
        whole = hashlib.sha256()
        for name, data in self.parts.items():
            whole.update(f"{name} {len(data)}\n".encode() + data)
        return whole.hexdigest()

    def about(self) -> dict[str, object]:
        """For a report: the source, bytes by part, and the digest."""
        sizes = {name: len(data) for name, data in self.parts.items()}
        return {"source": self.source, "bytes": sizes, "sha256": self.digest}

    def save(self, place: Path) -> None:
        """Write it to a directory, from which `load` reads it in another process."""
        place.mkdir(parents=True, exist_ok=True)
        for name, data in self.parts.items():
            (place / f"{name}.bin").write_bytes(data)
        (place / _ABOUT).write_text(json.dumps({"source": self.source, "parts": list(self.parts)}), encoding="utf-8")

    @classmethod
    def load(cls, place: Path) -> Corpus:
        """What `save` wrote."""
        about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
        return cls(about["source"], {name: (place / f"{name}.bin").read_bytes() for name in about["parts"]})


def plain_text(given: Path | None, size: int = SIZE) -> Corpus:
    """``size`` bytes of text in the shares 90, 5 and 5: from ``given``, or the sources of Python's standard library.

    Where ``given`` is a directory of ``<domain>.<split>.txt[.gz]``, its literature is taken if it has any, otherwise
    all of it, and its own splits are kept. Any other directory or file of text is cut in blocks that go to the parts
    in turn. The standard library is split by file.

    Raises:
        OptionError: there is nothing there, or less than a tenth of ``size``.
    """
    if given is None:
        return _checked(_library(size), size)
    given = given.expanduser()
    if given.is_dir() and any(".train.txt" in file.name for file in given.iterdir()):
        return _checked(_domains(given, size), size)
    blocks = _blocks(read_text([given]).encode("utf-8"))
    return _checked(Corpus(f"text of {given.name}", _in_turn(blocks, size)), size)


def _domains(directory: Path, size: int) -> Corpus:
    has_preferred = any(file.name.startswith(f"{PREFERRED}.train.txt") for file in directory.iterdir())
    texts = read_domains(directory, [PREFERRED] if has_preferred else None)
    whole = {split: "\n\n".join(text[split] for text in texts.values()).encode("utf-8") for split in SHARES}
    parts = {split: _spread(whole[split], round(size * share)) for split, share in SHARES.items()}
    return Corpus(f"{', '.join(texts)} of {directory.name}", parts)


def _library(size: int) -> Corpus:
    """Files in a fixed random order, so that every part has some of everything."""
    sources = _contents(library_files())
    return Corpus("sources and docstrings of Python's standard library", _in_turn(sources, size))


def _contents(files: Iterable[Path]) -> Iterable[bytes]:
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        yield text.encode("utf-8")


def _blocks(data: bytes) -> list[bytes]:
    return [data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK)]


def _in_turn(pieces: Iterable[bytes], size: int) -> dict[str, bytes]:
    """Give each piece to the part that lacks the largest share of what it should have."""
    parts: dict[str, list[bytes]] = {split: [] for split in SHARES}
    filled = dict.fromkeys(SHARES, 0)
    for piece in pieces:
        split = min(SHARES, key=lambda name: filled[name] / SHARES[name])
        parts[split].append(piece)
        filled[split] += len(piece)
        if sum(filled.values()) >= size * 1.1:
            break
    return {split: b"".join(parts[split])[: round(size * share)] for split, share in SHARES.items()}


def _spread(data: bytes, size: int) -> bytes:
    """``size`` bytes in blocks that lie evenly over all of ``data``, in order; all of it where it is shorter."""
    blocks, wanted = _blocks(data), -(-size // _BLOCK)
    if len(data) <= size:
        return data
    taken: Sequence[bytes] = [blocks[number * len(blocks) // wanted] for number in range(wanted)]
    return b"".join(taken)[:size]


def _checked(corpus: Corpus, size: int) -> Corpus:
    found = sum(map(len, corpus.parts.values()))
    if found < size // 10:
        raise OptionError(
            f"The {corpus.source} has {found:,} bytes; a study needs at least {size // 10:,}. Give more with --text."
        )
    return corpus
