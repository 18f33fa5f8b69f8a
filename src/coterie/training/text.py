"""Text in: files, directories and domains, plain or gzipped, read whole and checked before anything is computed."""

from __future__ import annotations

import gzip
import random
import sysconfig
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from coterie.errors import OptionError

SPLITS = ("train", "valid", "test")
ENDINGS = (".txt", ".txt.gz")

Corpus = Mapping[str, Mapping[str, str]]  # domain -> split -> text


def read_text(paths: Sequence[Path | str]) -> str:
    """The text of files, and of every ``.txt`` and ``.txt.gz`` under directories in name order, blank line between.

    Raises:
        OptionError: a path is missing, there is no text under it, or a file is empty, damaged or not UTF-8 text.
    """
    files = [file for path in paths for file in _files_of(Path(path))]
    return "\n\n".join(_read(file) for file in files)


def library_files() -> list[Path]:
    """The standard library's sources without its tests, in a fixed random order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "test", "tests"}
    files = sorted(path for path in root.rglob("*.py") if not left_out & set(path.relative_to(root).parts))
    random.Random(0).shuffle(files)
    return files


def python_sources(size: int = 1_000_000) -> str:
    """About ``size`` characters of the standard library's sources: text that every machine with Python has.

    Whole files in a fixed random order, so the same Python gives the same text.
    """
    parts: list[str] = []
    for file in library_files():
        if sum(map(len, parts)) >= size:
            break
        try:
            parts.append(_read(file))
        except OptionError:  # an empty file, or one in another encoding
            continue
    return "\n\n".join(parts)


def split_text(text: str, share: float) -> tuple[str, str]:
    """What to learn from and what to measure on: ``share`` of the text, in blocks spread evenly over it."""
    size = max(1, min(1 << 14, int(len(text) * share / 8)))
    parts: tuple[list[str], list[str]] = ([], [])
    for number, at in enumerate(range(0, len(text), size)):
        parts[int((number + 1) * share + 1e-9) - int(number * share + 1e-9)].append(text[at : at + size])
    return "".join(parts[0]), "".join(parts[1])


def read_domains(directory: Path | str, domains: Sequence[str] | None = None) -> Corpus:
    """The texts of ``<domain>.<split>.txt[.gz]`` in a directory, for the splits train, valid and test.

    Args:
        directory: where the files lie.
        domains: which to read; default all that have a train file, in name order.

    Raises:
        OptionError: no directory, no domain, an unknown domain, a split is missing, or a file is unusable.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise OptionError(f"{directory} is not a directory. Give the one that holds <domain>.train.txt files.")
    found = sorted({file.name.split(".train.txt")[0] for file in directory.iterdir() if _is_train(file)})
    if not found:
        raise OptionError(
            f"{directory} holds no text to train on. Put <domain>.train.txt, <domain>.valid.txt and "
            "<domain>.test.txt there, plain or as .txt.gz; one domain is enough."
        )
    for domain in domains or ():
        if domain not in found:
            raise OptionError(f"{directory} has no domain {domain!r}. Choose among: {', '.join(found)}.")
    return {
        domain: {split: _read(_split_file(directory, domain, split)) for split in SPLITS} for domain in domains or found
    }


def _is_train(file: Path) -> bool:
    return file.name.endswith(tuple(f".train{ending}" for ending in ENDINGS))


def _split_file(directory: Path, domain: str, split: str) -> Path:
    for ending in ENDINGS:
        if (file := directory / f"{domain}.{split}{ending}").exists():
            return file
    raise OptionError(f"{directory / f'{domain}.{split}.txt'} is missing. Each domain needs train, valid and test.")


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise OptionError(f"{path} does not exist. Give text files or a directory of .txt or .txt.gz files.")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(ENDINGS))
    if not files:
        raise OptionError(f"{path} holds no .txt or .txt.gz file. Give text files or a directory with some.")
    return files


def _read(file: Path) -> str:
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if file.suffix == ".gz" else data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{file} is not UTF-8 text (byte {error.start}). Convert it, or leave it out.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise OptionError(f"{file} cannot be read: {error}. Copy or compress it again.") from error
    if "\0" in text:
        raise OptionError(f"{file} is binary: it holds zero bytes. Give plain text.")
    if not text.strip():
        raise OptionError(f"{file} is empty. Put text into it, or leave it out.")
    return text
