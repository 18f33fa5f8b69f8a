"""Charts and pages: what is drawn is what was given, and nothing is fetched."""

from __future__ import annotations

import re

import pytest

from coterie.pictures import line_chart, page
from coterie.pictures.line_chart import _ticks
from coterie.pictures.page import cards, section, table
from coterie.training.summary_page import _spread


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0.1, 0.7, ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7"]),
        (2.7309, 2.8423, ["2.74", "2.76", "2.78", "2.80", "2.82", "2.84"]),
        (1, 5900, ["1,000", "2,000", "3,000", "4,000", "5,000"]),
        (-1e-5, 3e-5, ["-0.00001", "0.00000", "0.00001", "0.00002", "0.00003"]),
    ],
)
def test_axes_have_round_numbers(low, high, texts):
    assert [text for _, text in _ticks(low, high)] == texts


def test_a_chart_has_a_line_for_each_name():
    drawn = line_chart({"a & b": [(0, 1), (1, 2)], "c": [(0, 0)]}, "step", "nats <per> token")
    assert drawn.count("<polyline") == 2
    assert "a &amp; b" in drawn
    assert "nats &lt;per&gt; token" in drawn


def test_a_page_is_whole_and_fetches_nothing():
    made = page(
        "A <title>", "a lead", [cards([("3", "of <4>")]), section("One", "text", table(["x"], [["<y>"]]))], "foot"
    )
    assert made.startswith("<!doctype html>")
    assert made.endswith("</html>\n")
    assert "A &lt;title&gt;" in made
    assert "of &lt;4&gt;" in made
    assert "<td>&lt;y&gt;</td>" in made
    assert not re.findall(r"https?://|src=|href=|<script", made)


@pytest.mark.parametrize(("layers", "shown"), [(3, [0, 1, 2]), (6, [0, 1, 2, 3, 4, 5]), (24, [0, 5, 9, 14, 18, 23])])
def test_of_many_layers_some_are_drawn(layers, shown):
    assert _spread(layers) == shown
