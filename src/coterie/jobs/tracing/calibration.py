"""A calibration text: which files, for which domains, cut into tables of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from coterie.errors import OptionError, PromptError
from coterie.jobs.tracing.reading import Text, open_texts
from coterie.models.prompts import Prompts

__all__ = ["Part", "check_length", "open_parts", "tables"]

Texts = Sequence[str | Path] | Mapping[str, str]

# fewer tokens say nothing about a channel, however few experts there are
_LEAST = 64


@dataclass(frozen=True, eq=False)
class Part:
    """A text with the domain it stands for, empty where none."""

    domain: str
    text: Text


def open_parts(
    prompts: Prompts, texts: Texts, domains: Mapping[str, Sequence[str | Path]], tokens: int
) -> list[Part]:  # fmt: skip
    """The first ``tokens`` tokens of every text, those without a domain first.

    Args:
        prompts: the model's tokenizer.
        texts: files, or name -> text.
        domains: name -> files.
        tokens: of each text, at most.

    Raises:
        PromptError: a text is missing, empty or binary, or there is none.
        OptionError: a domain without a name.
    """
    if "" in domains:
        raise OptionError("A domain has a name: --domain code=main.py")
    if not texts and not domains:
        raise PromptError("There is no text to read. Name at least one file: --text notes.txt")
    parts = [Part("", text) for text in (open_texts(texts, prompts, tokens) if texts else [])]
    for name, files in domains.items():
        parts += [Part(name, text) for text in open_texts(files, prompts, tokens)]
    return parts


def check_length(parts: Sequence[Part], routes: int) -> None:
    """Refuse texts whose statistics would be noise.

    Args:
        parts: all texts.
        routes: experts that a layer's router tells apart; 0 without experts.

    Raises:
        PromptError: all of them together, or those of a domain, are too short.
    """
    wanted = {"The calibration text": (max(_LEAST, 2 * routes), sum(len(part.text.ids) for part in parts))}
    for name in dict.fromkeys(part.domain for part in parts if part.domain):
        count = sum(len(part.text.ids) for part in parts if part.domain == name)
        wanted[f"The calibration text of the domain {name}"] = (_LEAST, count)
    for what, (least, found) in wanted.items():
        if found < least:
            why = f" to tell {routes} experts apart" if least > _LEAST else ""
            raise PromptError(
                f"{what} has {found} tokens; the statistics asked need at least {least}{why}. Give more text, or a "
                "larger --max-tokens."
            )


def tables(ids: Tensor, window: int, batch: int) -> Iterator[Tensor]:
    """[B, N] tables; a last window of a single token, which foretells nothing, is left out."""
    whole = len(ids) // window * window
    if whole:
        yield from ids[:whole].view(-1, window).split(batch)
    if len(rest := ids[whole:]) > 1:
        yield rest[None]
