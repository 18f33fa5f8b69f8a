"""Tiny checkpoints, each made once per session."""

from __future__ import annotations

import functools

import pytest
import torch

from coterie.testing.checkpoints import save_tiny

LAYOUTS = {"per-expert": {}, "stacked": {"stacked": True}, "straddling": {"shards": 30}}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """``saved(family, layout="per-expert", dtype=torch.float32, **sizes)`` -> directory, not to be changed."""

    @functools.cache
    def make(family, layout="per-expert", dtype=torch.float32, **sizes):
        path = tmp_path_factory.mktemp(f"{family}-{layout}")
        return save_tiny(path, family, dtype=dtype, tokenizer=False, layers=3, k=3, **LAYOUTS[layout], **sizes)

    return make


@pytest.fixture(scope="session")
def prompt():
    """Two sequences of nine tokens."""
    return torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def left_padded():
    """The attention mask of a batch whose first sequence is three tokens shorter."""
    mask = torch.ones(2, 9, dtype=torch.int64)
    mask[0, :3] = 0
    return mask
