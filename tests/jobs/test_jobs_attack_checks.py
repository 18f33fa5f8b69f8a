"""Each check with numbers that must pass it and numbers that must fail it."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coterie.errors import OptionError
from coterie.jobs.attacking import Threat, Verdict, checks, parse_fraction

PASSED, FAILED, WARNING, SKIPPED = Verdict.PASSED, Verdict.FAILED, Verdict.WARNING, Verdict.SKIPPED


@pytest.mark.parametrize(
    ("check", "verdict"),
    [
        (checks.finite([0.0, 3.5]), PASSED),
        (checks.finite([0.0, math.nan]), FAILED),
        (checks.finite([math.inf]), FAILED),
        (checks.repeatable(0.0, 0, 10.0), PASSED),
        (checks.repeatable(0.1, 0, 10.0), FAILED),
        (checks.repeatable(0.0, 1, 10.0), FAILED),
        (checks.alone(1e-6, 0, 10.0), PASSED),
        (checks.alone(0.5, 0, 10.0), FAILED),
        (checks.alone(1e-6, 1, 10.0), FAILED),
        (checks.in_ball(0.1 + 1e-8, 0.1, 0.0, 1.0), PASSED),
        (checks.in_ball(0.11, 0.1, 0.0, 1.0), FAILED),
        (checks.in_ball(0.1, 0.1, -0.01, 1.0), FAILED),
        (checks.in_ball(0.1, 0.1, 0.0, 1.01), FAILED),
        (checks.gradients(0, 100), PASSED),
        (checks.gradients(1, 100), PASSED),
        (checks.gradients(2, 100), FAILED),
        (checks.gradients(0, 0), SKIPPED),
        (checks.loss_rises([(0, 0.5), (1, 0.9), (50, 1.4)]), PASSED),
        (checks.loss_rises([(0, 0.5), (1, 1.41), (50, 1.4)]), PASSED),
        (checks.loss_rises([(0, 0.5), (1, 1.4), (50, 0.9)]), FAILED),
        (checks.loss_rises([(0, 0.5), (50, 0.5)]), FAILED),
        (checks.loss_rises([(0, 0.5), (50, 0.4)]), FAILED),
        (checks.loss_rises([(0, 0.5)]), FAILED),
        (checks.loss_rises([]), SKIPPED),
        (checks.unbounded(0, 90, 1.0), PASSED),
        (checks.unbounded(1, 90, 1.0), FAILED),
        (checks.unbounded(0, 0, 1.0), SKIPPED),
        (checks.epsilon_matters([(0.0, 0.9), (0.1, 0.5), (1.0, 0.0)], 100), PASSED),
        (checks.epsilon_matters([(0.0, 0.9), (0.1, 0.5), (1.0, 0.6)], 100), FAILED),
        (checks.restarts_help_little(50, 49, 100, 1, 4), PASSED),
        (checks.restarts_help_little(50, 43, 100, 1, 4), WARNING),
        (checks.restarts_help_little(50, 38, 100, 1, 4), FAILED),
        (checks.restarts_help_little(0, 0, 100, 1, 4), SKIPPED),
        (checks.search_finds_no_more(0, 0, 500, 200), PASSED),
        (checks.search_finds_no_more(1, 0, 500, 200), PASSED),
        (checks.search_finds_no_more(10, 10, 500, 200), PASSED),
        (checks.search_finds_no_more(10, 0, 500, 200), FAILED),
        (checks.search_finds_no_more(100, 92, 500, 200), FAILED),
        (checks.toolbox_finds_no_more(3, 500), PASSED),
        (checks.toolbox_finds_no_more(30, 500), WARNING),
        (checks.routes_bound(0, 500), PASSED),
        (checks.routes_bound(50, 500), WARNING),
        (checks.load([0.5, 0.5]), PASSED),
        (checks.load([0.95, 0.05]), WARNING),
        (checks.load([0.0, 1.0]), WARNING),
        (checks.load([1.0]), SKIPPED),
        (checks.load([]), SKIPPED),
    ],
)
def test_verdicts(check, verdict):
    assert check.verdict is verdict, check.text
    assert check.text
    json.dumps(check.as_record())


def test_a_collapse_is_called_so():
    assert "collapsed: expert 1 has all images at layers.3" in checks.load([0.0, 1.0], "layers.3").text


@given(st.integers(1, 5000), st.data())
def test_what_a_fair_share_brings_about_is_no_accident(images, data):
    """Never below the allowed share; and more of it is never less suspicious."""
    flagged = [bool(checks._too_many(count, images, 0.02)) for count in (0, images // 50)]
    assert flagged == [False, False]
    count = data.draw(st.integers(1, images))
    if checks._too_many(count, images, 0.02):
        assert count == images or checks._too_many(count + 1, images, 0.02)


def test_the_chance_is_the_binomial_one():
    for images, allowed in [(100, 0.02), (500, 0.002), (7, 0.3)]:
        for count in range(1, 8):
            fewer = sum(math.comb(images, k) * allowed**k * (1 - allowed) ** (images - k) for k in range(count))
            expected = count > allowed * images and 1 - fewer < 0.05
            assert checks._too_many(count, images, allowed) == expected


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (" 2 / 255", 2 / 255), ("1", 1.0)])
def test_fractions_are_read(text, value):
    assert parse_fraction(text, "--epsilon") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "eight", "8/0", "8/", "/255", "nan", "inf", "1/2/3", "1e999", "8:255"])
def test_what_is_no_number_is_refused(text):
    with pytest.raises(OptionError, match="8/255"):
        parse_fraction(text, "--epsilon")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epsilon": 8.0}, "at most 1"),
        ({"epsilon": 0.0}, "above 0"),
        ({"epsilon": math.nan}, "above 0"),
        ({"step_size": 0.0}, "step size"),
        ({"steps": 0}, "steps must be 1"),
        ({"restarts": 0}, "restarts"),
        ({"images": 0}, "images"),
        ({"batch": -1}, "batch"),
    ],
)
def test_a_threat_that_is_none_is_refused(given, words):
    with pytest.raises(OptionError, match=words):
        Threat(**given)


def test_a_threat_says_itself_as_the_field_does():
    assert Threat().describe() == "L-inf epsilon 8/255, 50 steps of 2/255"
    assert Threat(0.15, 10, 0.05, 3).describe() == "L-inf epsilon 0.15, 10 steps of 0.05, 3 restarts"
    assert json.loads(json.dumps(Threat().as_record()))["step_size"] == pytest.approx(2 / 255)
