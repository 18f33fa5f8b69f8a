"""The text of a recipe: found, split in what is learned and what is measured on, and made ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from coterie.errors import CheckpointError, OptionError
from coterie.models.compat import quiet
from coterie.models.hub import resolve
from coterie.training.curve import Unseen
from coterie.training.recipe import PYTHON, Recipe
from coterie.training.text import python_sources, read_text, split_text
from coterie.training.tokens import token_ids, train_tokenizer

_HELD = 1 << 16  # characters that are measured on at most: each measurement reads all of them
_BYTES = 258  # entries: every byte, an end, padding


@dataclass(frozen=True, eq=False)
class Reading:
    """A tokenizer, [N] ids to learn from, and what is measured on."""

    tokenizer: Any
    train: Tensor
    unseen: Unseen

    def facts(self) -> dict[str, int]:
        """For a report: tokens on both sides, bytes of what is measured on, entries of the tokenizer."""
        return {
            "train_tokens": len(self.train), "unseen_tokens": len(self.unseen.ids),
            "unseen_bytes": self.unseen.num_bytes, "vocabulary": len(self.tokenizer),
        }  # fmt: skip


def read_for(recipe: Recipe) -> Reading:
    """Read what ``recipe`` learns from.

    Raises:
        OptionError: there is no text, a file is missing, empty or no text, or there is too little.
        CheckpointError: the model has no tokenizer.
    """
    words = recipe.data
    if not words.text:
        raise OptionError("There is no text to learn from. Write data: text in the recipe, or give --text.")
    text = "\n\n".join(python_sources() if path == PYTHON else read_text([path]) for path in words.text)
    learn, held = split_text(text, words.validation)
    held = held[:_HELD]
    tokenizer = _tokenizer(recipe, learn)
    train, unseen = token_ids(learn, tokenizer), token_ids(held, tokenizer)
    least = 2 * words.length
    if min(len(train), len(unseen)) < least:
        raise OptionError(
            f"The text has {len(train):,} tokens to learn from and {len(unseen):,} to measure on; both must have "
            f"{least:,}, two windows. Give more text, or lower data: length."
        )
    return Reading(tokenizer, train, Unseen(unseen, len(held.encode("utf-8")), words.length))


def _tokenizer(recipe: Recipe, text: str) -> Any:
    wanted = recipe.data.tokenizer or ("model" if recipe.model.source else "bytes")
    if wanted == "model":
        return _tokenizer_of(recipe.model.source)
    # byte-level pieces that nothing merges are bytes, and transformers can save and load them
    return train_tokenizer([], _BYTES) if wanted == "bytes" else train_tokenizer([text], int(wanted))


def _tokenizer_of(source: str) -> Any:
    from transformers import AutoTokenizer

    if not source:
        raise OptionError("data: tokenizer: model needs a model to read it from. Write bytes, or a number of entries.")
    path = resolve(source)
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} has no tokenizer that can be read ({str(error).splitlines()[0]}). Copy its tokenizer files again."
        ) from error
