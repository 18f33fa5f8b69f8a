"""Running a hosted model over texts, window by window, and hearing where each token goes."""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from coterie.errors import PromptError
from coterie.models.prompts import Prompts
from coterie.models.trace import trace
from coterie.routing import RoutePlan

# tokens of a plan before the next is begun: logits of all sites are kept until then
_PER_PLAN = 4096
# bytes of a file that are read for each token wanted; runs of spaces make tokens of dozens of bytes
_BYTES_PER_TOKEN = 48


@dataclass(frozen=True, eq=False)
class Text:
    """A text as a model reads it.

    Attributes:
        name: of the file, or what it was called.
        ids: [N] int64.
        nbytes: of the whole text.
        cut: it goes on after ``ids``.
    """

    name: str
    ids: Tensor
    nbytes: int
    cut: bool

    def describe(self) -> str:
        """How much of it is read."""
        return f"{self.name}: " + ("the first " if self.cut else "all ") + f"{len(self.ids):,} tokens"


@dataclass(frozen=True, eq=False)
class Passage:
    """What reading some windows of a text gave: routes of its items, and how well they were foretold.

    Attributes:
        plan: one sequence per window.
        surprise: sum of -ln p of the ``foretold`` tokens that had one before them in their window; NaN of a model
            that labels tokens instead of foretelling them.
    """

    plan: RoutePlan
    surprise: float
    foretold: int


def open_texts(texts: Sequence[str | Path] | Mapping[str, str], prompts: Prompts, tokens: int) -> list[Text]:
    """The first ``tokens`` tokens of each text.

    Args:
        texts: files, directories of .txt files, or name -> text.
        prompts: the model's tokenizer.
        tokens: of each, at most; special tokens that the tokenizer puts in front included.

    Raises:
        PromptError: a file is missing, binary or empty, or has no tokens; or there is no text.
    """
    if not texts:
        raise PromptError("There is no text to read. Name at least one file: --text notes.txt")
    if isinstance(texts, Mapping):
        read = [(name, text, len(text.encode()), False) for name, text in texts.items()]
    else:
        files = [file for path in texts for file in _files_of(Path(path).expanduser())]
        read = [_read_file(file, tokens * _BYTES_PER_TOKEN + 4096) for file in files]
    return [_tokenised(*each, prompts, tokens) for each in read]


def _files_of(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.rglob("*.txt") if file.is_file())
    if not found:
        raise PromptError(f"{path} holds no .txt file. Give text files, or a directory with some.")
    return found


def _read_file(path: Path, limit: int) -> tuple[str, str, int, bool]:
    """Name, text, bytes in all, and whether ``limit`` bytes were not all of it."""
    try:
        with path.open("rb") as file:
            data, size = file.read(limit), path.stat().st_size
    except OSError as error:
        raise PromptError(f"{path} cannot be read ({error.strerror}). Check the path of the text.") from error
    cut = size > len(data)
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=not cut)
    except UnicodeDecodeError as error:
        raise PromptError(_binary(path, f"byte {error.start} is not UTF-8")) from error
    if "\0" in text:
        raise PromptError(_binary(path, "it has zero bytes"))
    return path.name, text, max(size, len(data)), cut


def _binary(path: Path, why: str) -> str:
    return (
        f"{path} is no plain text: {why}. Give a UTF-8 text file; unpack an archive first; convert another "
        f"encoding with: iconv -f latin1 -t utf-8 {path}"
    )


def _tokenised(name: str, text: str, nbytes: int, cut: bool, prompts: Prompts, tokens: int) -> Text:
    if not text.strip():
        raise PromptError(f"{name} is empty. Give a file with text in it.")
    ids = prompts.tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    if len(ids) < 2:
        raise PromptError(f"{name} is {len(ids)} token long for this model's tokenizer. Give a longer text.")
    return Text(name, ids[:tokens].long(), nbytes, cut or len(ids) > tokens)


def passages(host: Any, ids: Tensor, window: int, say: Callable[[int], None] = lambda done: None) -> Iterator[Passage]:
    """Run ``host`` over ``ids`` [N], every ``window`` tokens with an empty cache, and record its routes.

    ``host`` comes from `coterie.load` with ``context`` of ``window`` or more and ``all_logits``; each window is fed
    in pieces of its ``prefill``, and where there is no cache, a piece is a window. ``say`` is told how many tokens
    are done. Blocks; one at a time.
    """
    window = window if host.can_generate() else min(window, host.coterie.prefill)
    windows = _windows(ids, window)
    per_plan = max(1, _PER_PLAN // window)
    for first in range(0, len(windows), per_plan):
        surprise, foretold = 0.0, 0
        with trace(host) as recording:
            for number, part in enumerate(windows[first : first + per_plan], first):
                surprise += _read(host, part)
                foretold += len(part) - 1
                say(number * window + len(part))
        yield Passage(recording.plan(), surprise, foretold)


def _windows(ids: Tensor, window: int) -> list[Tensor]:
    """Pieces of ``window`` tokens. A last one of a single token, of which nothing can be foretold, is left out."""
    return [part for part in ids.split(window) if len(part) > 1]


@torch.no_grad()
def _read(host: Any, ids: Tensor) -> float:
    """Sum of -ln p over all tokens of a window but the first."""
    surprise, cache = 0.0, None
    for first in range(0, len(ids), host.coterie.prefill):
        piece = ids[first : first + host.coterie.prefill]
        given = {"past_key_values": cache, "use_cache": True} if host.can_generate() else {}
        out = host(input_ids=piece[None], **given)
        cache = getattr(out, "past_key_values", None)
        following = ids[first + 1 : first + 1 + len(piece)]
        surprise += _surprise(out.logits[0, : len(following)], following) if host.can_generate() else math.nan
    return surprise


def _surprise(logits: Tensor, ids: Tensor) -> float:
    """Few rows at a time: they are widened to float32."""
    rows = zip(logits.split(32), ids.split(32), strict=True)
    return float(sum(torch.nn.functional.cross_entropy(some.float(), to, reduction="sum") for some, to in rows))
