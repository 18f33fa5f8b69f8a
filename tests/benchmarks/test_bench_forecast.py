"""The forecast benchmark's arithmetic: what passes, what fails, what is next to nothing."""

from __future__ import annotations

from typing import Any

import forecast
import pytest

FACTS: dict[str, Any] = {
    "hardware": {"processor": "test", "cores": 2, "kernel": "6", "file_system": "ext4"},
    "versions": {"python": "3.11"},
    "repository": {"commit": "abc", "clean": True},
}


def case(foretold: float, measured: float, routes: str = forecast.UNIFORM, foreign: float = 0.0) -> forecast.Case:
    return forecast.Case(
        "tiny", routes, "lru", 1, 4, foretold, measured, 1e6, 10, 10, 0.5, 0.5, 20.0, 10.0, foreign
    )  # fmt: skip


@pytest.mark.parametrize(
    ("foretold", "measured", "holds"),
    [(1e5, 1e5, True), (1.29e5, 1e5, True), (1.4e5, 1e5, False), (0.6e5, 1e5, False), (9e3, 0, True), (2e4, 0, False)],
)
def test_what_holds(foretold: float, measured: float, holds: bool) -> None:
    one = case(foretold, measured)
    assert one.holds is holds
    assert ("FAIL" in forecast.render([one], FACTS)) is not holds


def test_the_trace_of_another_text_is_shown_and_not_judged() -> None:
    text = forecast.render([case(1e5, 1e5), case(9e5, 1e5, forecast.KNOWN)], FACTS)
    assert "pass: 1 of 1 judged" in text
    assert "+800.0%" in text


def test_speeds_of_runs_beside_others_are_left_out() -> None:
    assert "2.00 to 2.00" in forecast.render([case(1e5, 1e5)], FACTS)
    assert "say nothing" in forecast.render([case(1e5, 1e5, foreign=0.9)], FACTS)
