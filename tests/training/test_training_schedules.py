from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.training.schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    linear,
    multi_step,
    piecewise,
    schedule,
)  # fmt: skip

T = 400_000  # of the published scripts; the values below are worked out by hand from the published formulas


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 8), (25_000, 8), (25_001, 9), (75_000, 10), (125_000, 10), (175_000, 12), (399_999, 16), (T, 16), (T * 2, 16)],
)
def test_linear(step, expected):
    """25 000 of 400 000 are half a choice of eight: half to even keeps it, one step more does not."""
    assert linear(8, 16).whole(step, T) == expected
    assert linear(16, 8).whole(step, T) == 24 - expected


@pytest.mark.parametrize(("step", "expected"), [(0, 8), (100_000, 9), (200_000, 10), (300_000, 13), (T, 16)])
def test_cosine(step, expected):
    """16 - round(8 cos): cos of 0, 22.5, 45 and 67.5 degrees is 1, 0.924, 0.707 and 0.383."""
    assert cosine(8, 16).whole(step, T) == expected
    assert cosine(16, 8).whole(step, T) == 24 - expected


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 8), (1332, 8), (1333 * 6, 8), (1333 * 7, 9), (1333 * 69, 12), (T, 16)]
)
def test_exponential(step, expected):
    """16 - round(8 * 0.99^(step // 1333)): 0.99^6 = 0.941, 0.99^7 = 0.932, 0.99^69 = 0.4998."""
    assert exponential(8, 16).whole(step, T) == expected
    assert exponential(16, 8).whole(step, T) == 24 - expected


@pytest.mark.parametrize(("step", "expected"), [(0, 1), (79_999, 1), (80_000, 2), (160_000, 4), (320_000, 16), (T, 16)])
def test_multi_step(step, expected):
    assert multi_step([1, 2, 4, 8, 16]).whole(step, T) == expected


def test_piecewise():
    coefficient = piecewise([0.02, 1e-4], [0.5])
    assert [coefficient.value(step, 10) for step in (0, 4, 5, 9, 10)] == [0.02, 0.02, 1e-4, 1e-4, 1e-4]


def test_the_end_may_be_reached_early():
    early = linear(0, 1, until=0.5)
    assert [early.value(step, 8) for step in (0, 2, 4, 8)] == [0, 0.5, 1, 1]


@given(
    st.sampled_from(["linear", "cosine", "exponential"]), st.integers(1, 40), st.integers(1, 40), st.integers(1, 900)
)
def test_every_shape_begins_ends_and_never_turns_back(shape, start, end, total):
    course = Schedule(shape, (start, end))
    values = [course.whole(step, total) for step in range(total + 2)]
    assert values[0] == start
    assert values[total] == values[total + 1] == end
    assert values == sorted(values, reverse=end < start)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (2, constant(2)),
        ("1e-4", constant(1e-4)),
        ({"shape": "linear", "start": 4, "end": 8}, linear(4, 8)),
        ({"shape": "cosine", "start": 4, "end": 8, "until": 0.5}, cosine(4, 8, until=0.5)),
        ({"shape": "multi_step", "values": [1, 2]}, multi_step([1, 2])),
        ({"shape": "piecewise", "values": [0.02, "1e-4"], "at": [0.5]}, piecewise([0.02, 1e-4], [0.5])),
        ({"shape": "constant", "value": 3}, constant(3)),
    ],
)
def test_from_words(words, expected):
    assert schedule(words) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"shape": "lineer", "start": 1, "end": 2}, "Did you mean 'linear'"),
        ({"shape": "linear", "start": 1, "stop": 2}, "has no 'stop'"),
        ({"shape": "linear", "start": 1}, "needs end"),
        ({"start": 1, "end": 2}, "shape is missing"),
        ({"shape": "linear", "start": "four", "end": 8}, "start must be a number, not 'four'"),
        ({"shape": "multi_step", "values": 3}, "a list of numbers"),
        ({"shape": "piecewise", "values": [1, 2], "at": [0.2, 0.5]}, "needs 1 shares"),
        ({"shape": "piecewise", "values": [1, 2], "at": [2]}, "between 0 and 1"),
        ({"shape": "linear", "start": 1, "end": 2, "until": 2}, "until"),
        (True, "must be a number"),
        ([], "must be a number"),
    ],
)
def test_words_that_make_no_sense_are_named(words, said):
    with pytest.raises(OptionError, match=r"schedules\.k|shares|between|until") as error:
        schedule(words, "schedules.k")
    assert said in str(error.value)


def test_a_whole_number_is_not_scheduled_in_halves():
    with pytest.raises(OptionError, match="must be whole"):
        linear(0.5, 2).whole(0, 10)
