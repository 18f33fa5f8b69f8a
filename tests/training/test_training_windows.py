from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.training.windows import Windows, batches, stream

STREAMS = {"low": torch.arange(0, 700), "high": torch.arange(1000, 1300)}


def starts(windows):
    return [int(item["input_ids"][0]) for item in windows]


def test_a_longer_run_begins_like_a_shorter_one():
    short, long = Windows(STREAMS, 8, 100, seed=3), Windows(STREAMS, 8, 1000, seed=3)
    assert starts(short) == [int(long[at]["input_ids"][0]) for at in range(100)]


def test_seeds_give_other_orders():
    assert starts(Windows(STREAMS, 8, 50, seed=0)) != starts(Windows(STREAMS, 8, 50, seed=1))


def test_a_window_is_a_piece_of_one_domain_and_its_own_labels():
    for item in (windows := Windows(STREAMS, 8, 200))[0], windows[199]:
        assert torch.equal(item["labels"], item["input_ids"])
        assert torch.equal(item["input_ids"].diff(), torch.ones(7, dtype=torch.int64))


def test_a_domain_is_read_through_before_it_comes_again():
    begin = starts(Windows({"only": STREAMS["low"]}, 8, 86))
    assert sorted(begin) == list(range(min(begin), min(begin) + 86 * 8, 8))


@pytest.mark.parametrize(("evenness", "share"), [(1.0, 0.7), (0.0, 0.5)])
def test_shares_of_the_domains(evenness, share):
    begin = starts(Windows(STREAMS, 8, 4000, evenness=evenness))
    assert sum(at < 1000 for at in begin) / 4000 == pytest.approx(share, abs=0.03)


def test_too_little_text_is_said():
    with pytest.raises(OptionError, match="'low' has 15 tokens; training needs at least 16"):
        Windows({"low": torch.arange(15)}, 8, 1)


@given(st.integers(2, 90), st.integers(4, 12), st.integers(1, 4))
def test_a_stream_has_every_target_once_with_context(size, length, stride):
    targets, least = [], length - stride
    for ids, new in batches(stream(torch.arange(size), length, stride), 3):
        for row, count in zip(ids.tolist(), new.tolist(), strict=True):
            assert len(row) <= length
            assert len(row) - count >= min(row[-count], least)
            targets += row[len(row) - count :]
    assert sorted(targets) == list(range(1, size))
