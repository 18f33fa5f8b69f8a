"""The page that helps to choose says of each router what its instance declares."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coterie.routers import PRESETS, SiteShape, build_routers

PAGE = (Path(__file__).parents[2] / "docs" / "choosing-a-router.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| ((?:yes|no) \|.*) \|$", PAGE, re.MULTILINE))
OPTIONS = {"group_limited": {"num_groups": 4, "keep_groups": 2}}


def test_every_router_has_a_row():
    assert set(ROWS) == set(PRESETS)


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_row_says_what_the_instance_says(name):
    (router,) = build_routers(name, [SiteShape(16, 8, 2, vocab_size=32)], OPTIONS.get(name, {}))
    facts = [router.causal, router.variable_k, router.learned, router.carries, router.stochastic]
    assert [cell.strip() for cell in ROWS[name].split("|")] == [*("yes" if f else "no" for f in facts), router.scope]
