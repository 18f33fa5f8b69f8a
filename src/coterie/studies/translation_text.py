"""Sentence pairs for the study of translation: read, cut to short ones, encoded, and put in batches of like length."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from coterie.errors import OptionError
from coterie.studies.corpus import Corpus
from coterie.training import train_tokenizer

FILES = ("pairs.jsonl.gz", "pairs.jsonl")
SPLITS = ("train", "valid", "test")
SOURCE, TARGET = "en", "es"
LONGEST, MOST_BYTES = 6, 200  # words of either side, and bytes: a subword has one at least
FEWEST = {"train": 64, "valid": 8, "test": 8}
ENTRIES = 2000  # of the vocabulary, which both languages share
_IGNORED = -100

Pair = tuple[str, str]


def pairs_of(given: Path | None) -> Corpus:
    """The short pairs of a file of JSON lines, or of the ``pairs.jsonl[.gz]`` of a directory, by split.

    A line is ``{"split": "train", "en": ..., "es": ...}``; splits are train, valid and test.

    Raises:
        OptionError: nothing was given, there is no such file, a line is something else, or there are too few pairs.
    """
    path = _file_of(given)
    kept: dict[str, list[str]] = {split: [] for split in SPLITS}
    for number, line in enumerate(_lines(path), 1):
        split, pair = _checked(line, f"{path}, line {number}")
        if all(0 < len(side.split()) <= LONGEST and len(side.encode()) <= MOST_BYTES for side in pair):
            kept[split].append(json.dumps(pair, ensure_ascii=False))
    for split, least in FEWEST.items():
        if len(kept[split]) < least:
            raise OptionError(
                f"{path} has {len(kept[split])} {split} pairs of at most {LONGEST} words; the study needs {least}."
            )
    source = f"pairs of at most {LONGEST} words, {SOURCE} to {TARGET}, of {path.parent.name}/{path.name}"
    return Corpus(source, {split: "\n".join(lines).encode() for split, lines in kept.items()})


def read_pairs(data: bytes) -> list[Pair]:
    """A part of `pairs_of`: (source, target) of each pair."""
    return [(source, target) for source, target in map(json.loads, data.decode().splitlines())]


def vocabulary(pairs: Sequence[Pair]) -> Any:
    """A byte-level BPE tokenizer that both languages share."""
    return train_tokenizer((side for pair in pairs for side in pair), ENTRIES)


@dataclass(frozen=True)
class Encoded:
    """Pairs as ids: both sides end with the end token. Sides are ragged."""

    source: list[list[int]]
    target: list[list[int]]

    @classmethod
    def of(cls, pairs: Sequence[Pair], tokenizer: Any) -> Encoded:
        """Encode pairs."""
        sides = [tokenizer([pair[side] for pair in pairs])["input_ids"] for side in (0, 1)]
        return cls(*([[*ids, tokenizer.eos_token_id] for ids in side] for side in sides))


class PairBatches(Dataset[dict[str, Tensor]]):
    """Items in an order in which every ``batch`` of them are about as long and padded alike. Final.

    The pairs are read through in random order, pass after pass. Within a pool of batches they are sorted by length,
    and the batches are shuffled. Depends on the seed alone.

    Args:
        pairs: what is learned.
        pad: the id that fills up a source; a target is filled up with -100, which nobody predicts.
        batch: pairs of a batch.
        batches: how many.
        seed: of the order.
        pool: batches that are sorted together.
    """

    def __init__(self, pairs: Encoded, pad: int, *, batch: int, batches: int, seed: int, pool: int = 50) -> None:
        self._pairs, self._pad, self._batch = pairs, pad, batch
        random = np.random.default_rng(seed)
        order: list[np.ndarray] = []
        while len(order) < batches:
            passed = random.permutation(len(pairs.source))
            for start in range(0, len(passed), pool * batch):
                order += self._batched(passed[start : start + pool * batch], random)
        self._order = order[:batches]

    def __len__(self) -> int:
        return len(self._order) * self._batch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` [N], ``labels`` [M], N and M being those of its batch."""
        members = self._order[index // self._batch]
        pair = int(members[index % self._batch])
        source, target = self._pairs.source, self._pairs.target
        ids, mask = padded([source[pair]], self._pad, max(len(source[one]) for one in members))
        labels, _ = padded([target[pair]], _IGNORED, max(len(target[one]) for one in members))
        return {"input_ids": ids[0], "attention_mask": mask[0], "labels": labels[0]}

    def _batched(self, pairs: np.ndarray, random: np.random.Generator) -> list[np.ndarray]:
        """Whole batches of like length in random order; what is left over waits for the next pass."""
        lengths = [(len(self._pairs.target[one]), len(self._pairs.source[one])) for one in pairs]
        by_length = pairs[sorted(range(len(pairs)), key=lengths.__getitem__)]
        whole = len(pairs) // self._batch
        return [by_length[n * self._batch : (n + 1) * self._batch] for n in random.permutation(whole)]


def padded(rows: Sequence[Sequence[int]], fill: int, length: int | None = None) -> tuple[Tensor, Tensor]:
    """[B, N] int64 ids, and which of them are real."""
    length = max(map(len, rows)) if length is None else length
    ids = torch.tensor([[*row, *([fill] * (length - len(row)))] for row in rows])
    real = torch.arange(length) < torch.tensor([len(row) for row in rows])[:, None]
    return ids, real.long()


def _file_of(given: Path | None) -> Path:
    what = "a directory with pairs.jsonl or pairs.jsonl.gz, of lines such as " + json.dumps(
        {"split": "train", SOURCE: "Good morning.", TARGET: "Buenos días."}, ensure_ascii=False
    )
    if given is None:
        raise OptionError(
            f"The study of translation needs sentence pairs, and no machine has them. Give --text: {what}"
        )
    given = given.expanduser()
    found = given if given.is_file() else next((given / name for name in FILES if (given / name).is_file()), None)
    if found is None:
        raise OptionError(f"{given} holds no sentence pairs. Give {what}")
    return found


def _lines(path: Path) -> list[str]:
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise OptionError(f"{path} cannot be read as lines of JSON: {error}.") from error
    return [line for line in text.splitlines() if line.strip()]


def _checked(line: str, where: str) -> tuple[str, Pair]:
    try:
        record = json.loads(line)
        split, pair = record["split"], (record[SOURCE], record[TARGET])
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"{where} has no split, {SOURCE} and {TARGET} ({error!r}). Correct it or take it out."
        ) from error
    if split not in SPLITS or not all(isinstance(side, str) for side in pair):
        raise OptionError(f"{where}: split must be train, valid or test, {SOURCE} and {TARGET} text.")
    return split, pair
