"""Options of presets as a recipe file may have them: of the right kind, or refused with what is wanted."""

from __future__ import annotations

from typing import Any

import pytest

from coterie.errors import OptionError
from coterie.routers import PRESETS, SiteShape, build_routers, preset_options

SITE = SiteShape(16, 8, 2, 32)
NEEDED: dict[str, dict[str, Any]] = {"group_limited": {"num_groups": 4, "keep_groups": 2}}


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_defaults_are_of_the_right_kind(name: str) -> None:
    options = {key: value for key, value in preset_options(name).items() if value is not None}
    assert len(build_routers(name, [SITE, SITE], {**options, **NEEDED.get(name, {})})) == 2


@pytest.mark.parametrize(
    ("name", "option", "value", "wanted"),
    [
        ("rmoe", "state", "x", "a whole number"),
        ("rmoe", "state", 12.5, "a whole number"),
        ("rmoe", "state", True, "a whole number"),
        ("rmoe", "state", None, "a whole number"),
        ("rmoe", "residual", "a", "a number"),
        ("rmoe", "residual", float("nan"), "a number"),
        ("rmoe", "detach_residual", 1, "true or false"),
        ("rmoe", "cell", ["gru"], "'gru' or 'rnn' or 'lstm'"),
        ("rmoe", "cell", "GRU", "'gru' or 'rnn' or 'lstm'"),
        ("adamoe", "num_nulls", 2.0, "a whole number"),
        ("smoe_dropout", "uniform", "yes", "true or false"),
        ("smoe_dropout", "seed", 2**80, "a whole number"),
        ("smoe_dropout", "output_scale", float("inf"), "a number"),
        ("top_p", "k_max", "2", "a whole number or nothing"),
        ("top_k", "capacity", "1", "a number or nothing"),
        ("top_k", "capacity_order", "age", "'probability' or 'position'"),
    ],
)
def test_a_value_of_another_kind(name: str, option: str, value: object, wanted: str) -> None:
    with pytest.raises(OptionError, match=f"{option}=.* is not allowed: write {wanted}"):
        build_routers(name, [SITE], {option: value})


def test_what_is_allowed() -> None:
    build_routers("rmoe", [SITE], {"residual": 1, "state": 3, "k": 1})
    build_routers("top_p", [SITE], {"k_max": None, "p": 1})
    build_routers("smoe_dropout", [SITE], {"seed": -1})


def test_an_option_that_is_missing() -> None:
    with pytest.raises(OptionError, match="needs the option 'num_groups'"):
        build_routers("group_limited", [SITE], {})
