from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.training.tokens import token_ids, train_tokenizer

TEXT = "the cat sat on the mat\n\nthe dog sat on the log"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT], 280)


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(token_ids(text, tokenizer)) == text


def test_frequent_pairs_become_tokens(tokenizer):
    assert 258 < len(tokenizer) <= 280
    assert len(token_ids(TEXT, tokenizer)) < len(TEXT) / 2


def test_the_same_text_gives_the_same_tokenizer(tokenizer):
    assert train_tokenizer([TEXT], 280).get_vocab() == tokenizer.get_vocab()


@given(st.text())
def test_without_a_tokenizer_ids_are_bytes(text):
    ids = token_ids(text)
    assert ids.dtype == torch.int64
    assert bytes(ids.tolist()).decode() == text
