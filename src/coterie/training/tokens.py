"""From text to token ids: byte-level BPE trained on the text itself, or plain bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

END, PAD = "<|end|>", "<|pad|>"


def train_tokenizer(texts: Iterable[str], entries: int) -> Any:
    """A byte-level BPE tokenizer of at most ``entries`` tokens, as transformers' fast tokenizer.

    Deterministic: the same texts give the same tokenizer. Any text can be encoded and comes back unchanged.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=entries, special_tokens=[END, PAD], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator((part for text in texts for part in text.split("\n\n")), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def token_ids(text: str, tokenizer: Any | None = None) -> Tensor:
    """[N] int64 ids of a text; without a tokenizer its UTF-8 bytes, 0 to 255. Names of special tokens are text."""
    if tokenizer is None:
        return torch.from_numpy(np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64))
    return torch.tensor(tokenizer(text, verbose=False, split_special_tokens=True)["input_ids"], dtype=torch.int64)
