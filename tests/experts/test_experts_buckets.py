from __future__ import annotations

import pytest
import torch

from coterie.experts.buckets import bucketed


@pytest.mark.parametrize(
    ("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (5, 8), (33, 64), (64, 64), (65, 128), (500, 512)]
)
def test_rows_are_filled_to_the_next_bucket(rows, bucket):
    x = torch.ones(rows, 4, dtype=torch.bfloat16)
    filled = bucketed(x)
    assert filled.shape == (bucket, 4)
    assert torch.equal(filled[:rows], x)
    assert not filled[rows:].any()


def test_there_are_few_buckets():
    assert len({bucketed(torch.zeros(n, 1, dtype=torch.float16)).shape[0] for n in range(1, 513)}) <= 14


def test_float32_and_training_keep_their_rows():
    assert bucketed(torch.ones(3, 4)).shape[0] == 3
    assert bucketed(torch.ones(3, 4, dtype=torch.bfloat16, requires_grad=True)).shape[0] == 3
