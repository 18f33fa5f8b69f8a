"""Whether generated text is made of words, and whether it goes round in circles."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in order, in lower case: runs of letters, apostrophes inside included."""
    return _WORD.findall(text.lower())


def save_words(texts: Iterable[str], path: Path) -> None:
    """Write the distinct words of texts, sorted, one a line, gzipped. The same texts give the same bytes."""
    words = sorted({word for text in texts for word in words_of(text)})
    path.write_bytes(gzip.compress("\n".join(words).encode("utf-8"), 9, mtime=0))


def read_words(path: Path) -> frozenset[str]:
    """What `save_words` wrote."""
    return frozenset(gzip.decompress(path.read_bytes()).decode("utf-8").split("\n"))


def known_share(text: str, vocabulary: frozenset[str]) -> float:
    """The share of a text's words that are in ``vocabulary``; 0 without words. A cut last word is left out."""
    words = words_of(re.sub(r"[^\W\d_]+$", "", text))
    return sum(word in vocabulary for word in words) / len(words) if words else 0.0


def most_repeated(text: str, size: int = 4) -> int:
    """How often the most frequent run of ``size`` words occurs; 0 where there are fewer words."""
    words = words_of(text)
    runs = Counter(zip(*(words[at:] for at in range(size)), strict=False))
    return max(runs.values(), default=0)


@torch.inference_mode()
def continue_text(model: Any, tokenizer: Any, prompt: str, *, new_tokens: int = 200, seed: int = 0) -> str:
    """What follows ``prompt``, sampled as the checkpoint's own generation config says. Sets torch's seed."""
    torch.manual_seed(seed)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    answer = model.generate(ids.to(model.device), max_new_tokens=new_tokens)
    return str(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))
