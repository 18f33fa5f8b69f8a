"""Verdicts: what passes, what fails, and what cannot be judged."""

from __future__ import annotations

import math

import pytest

from coterie.studies import Claim, at_least, each, judge, on_average, together


def claim(test, **more):
    return Claim("x", "x is above 1", lambda arms: {"x": arms["one"]["x"]}, test, **more)


def seeds(*values):
    return {seed: {"one": {"x": value}} for seed, value in enumerate(values)}


def above(numbers):
    return numbers["x"] > 1


@pytest.mark.parametrize(
    ("test", "values", "verdict"),
    [
        (each(above), (2, 3, 4), "holds"),
        (each(above), (2, 1, 4), "does not hold"),
        (at_least(2, above), (2, 1, 4), "holds"),
        (at_least(2, above), (2, 1, 0), "does not hold"),
        (on_average(above), (0, 0, 4), "holds"),
        (on_average(above), (0, 0, 3), "does not hold"),
        (together(on_average(above), at_least(2, above)), (0, 0, 9), "does not hold"),
        (together(on_average(above), at_least(2, above)), (2, 2, 0), "holds"),
    ],
)
def test_a_test_over_seeds(test, values, verdict):
    found = judge(claim(test), seeds(*values))
    assert found.verdict == verdict
    assert found.why == ""
    assert [numbers["x"] for numbers in found.numbers.values()] == list(values)


def test_a_failure_may_prove_nothing():
    assert judge(claim(each(above), failure="not shown"), seeds(0, 0, 0)).verdict == "not shown"


@pytest.mark.parametrize(
    ("by_seed", "shortened", "why"),
    [
        (seeds(2, 3, 4), True, "shortened"),
        (seeds(2, 3), False, "2 of 3 seeds"),
        (seeds(2, 3, math.nan), False, "no x"),
        (seeds(2, 3, None), False, "no x"),
        ({0: {"one": {"x": 2}}, 1: {"one": {}}, 2: {}}, False, "no one, no x"),
    ],
)
def test_what_cannot_be_judged_is_not_shown(by_seed, shortened, why):
    found = judge(claim(each(above)), by_seed, shortened=shortened)
    assert found.verdict == "not shown"
    assert why in found.why


def test_fewer_seeds_do_for_a_claim_that_asks_for_fewer():
    assert judge(claim(each(above), seeds=1), seeds(2)).verdict == "holds"
