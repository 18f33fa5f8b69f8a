"""Units of S: their scores, how many survive, and when."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.ops.structure import keep_units, kept_share, neuron_scores, smoothed, unit_scores


@settings(deadline=None)
@given(
    total=st.integers(1, 300), begin=st.integers(0, 300), end=st.integers(0, 300), final=st.floats(0, 1),
)  # fmt: skip
def test_the_schedule_never_rises(total, begin, end, final):
    """1 before it begins, the final share after it ends, falling between."""
    if begin + end > total:
        with pytest.raises(OptionError, match="do not fit"):
            kept_share(0, total, begin, end, final)
        return
    course = [kept_share(step, total, begin, end, final) for step in range(total + 1)]
    assert all(a >= b for a, b in pairwise(course))
    assert course[:begin] == [1.0] * begin
    assert course[total - end :] == [final] * (end + 1)
    assert all(final <= share <= 1 for share in course)


def test_the_schedule_begins_where_the_printed_formula_exceeds_one():
    assert kept_share(400, 10000, 400, 1600, 0.1) == 1.0
    assert kept_share(4400, 10000, 400, 1600, 0.1) == pytest.approx(0.1 + 0.9 * 0.125)


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5), share=st.floats(0, 1), ties=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_as_many_survive_as_the_share_says(sizes, share, ties, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = [torch.rand(size, generator=generator) for size in sizes]
    scores = [score.mul(3).round() if ties else score for score in scores]
    masks = keep_units(scores, share)
    kept = sum(int(mask.sum()) for mask in masks)
    assert kept == round(share * sum(sizes))
    alive = [float(s) for score, mask in zip(scores, masks, strict=True) for s in score[mask]]
    dead = [float(s) for score, mask in zip(scores, masks, strict=True) for s in score[~mask]]
    assert not alive or not dead or min(alive) >= max(dead)


def test_ties_fall_to_the_first():
    masks = keep_units([torch.ones(2), torch.ones(2)], 0.5)
    assert [mask.tolist() for mask in masks] == [[True, True], [False, False]]


def test_scores():
    importance = torch.tensor([[1.0, 3.0], [5.0, 7.0], [0.0, 2.0]])
    assert unit_scores(importance, "row").tolist() == [2, 6, 1]
    assert unit_scores(importance, "col").tolist() == [2, 4]
    both = neuron_scores({"up_proj": importance, "down_proj": importance.T})
    assert both.tolist() == [2, 6, 1]
    with pytest.raises(OptionError, match="'row' or by 'col'"):
        unit_scores(importance, "neuron")


def test_importance_is_smoothed():
    first = smoothed(None, torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.0]))
    assert first.tolist() == [6, 0]
    second = smoothed(first, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]))
    assert second.tolist() == pytest.approx([0.85 * 6, 0.15])


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_wrong_share(share):
    with pytest.raises(OptionError, match="between 0 and 1"):
        keep_units([torch.ones(3)], share)


def test_a_score_that_is_no_number():
    with pytest.raises(OptionError, match="not a number"):
        keep_units([torch.tensor([1.0, float("nan")])], 0.5)
