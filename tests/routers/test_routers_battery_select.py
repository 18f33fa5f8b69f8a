"""The battery over the selections that take as many as needed, draw, compete, or are limited."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from coterie.routers import (
    Router,
    RouteTable,
    Select,
    adamoe,
    expert_choice,
    min_p,
    thor,
    top_k,
    top_p,
    with_capacity,
)
from coterie.routers.score import LinearScore, WithNulls
from coterie.routers.select import Draw, TopP
from coterie.routers.weigh import Selected, TrueOnly
from coterie.testing import ROUTER_CHECKS, RouterCase
from coterie.testing.router_company import capacity_rule, expert_choice_rule, min_p_rule, top_p_rule
from coterie.testing.router_draws import draw_rule

VARIABLE: dict[str, Any] = {"rule": None, "k": 6, "most": 6, "variable_k": True, "k_is": "at most"}
P: dict[str, Any] = {**VARIABLE, "asked": (("p", 0.0), ("p", 0.2), ("p", 0.9), ("p", 1.0))}
DRAWN: dict[str, Any] = {
    "rule": None, "k": 2, "most": 6, "learned": False, "stochastic": True,
    "asked": (("draw", "token"), ("draw", "sequence"), ("draw", "batch"), ("draw", "average"), ("draw", "fixed:4")),
}  # fmt: skip
LIMITED: dict[str, Any] = {"rule": None, "k": 2, "most": 6, "variable_k": True, "alone": False, "scope": "batch"}


def over_nulls(select: Select) -> Router:
    """Four true and three null routes."""
    return Router(WithNulls(LinearScore(8, 4), 3, 8), select, TrueOnly(4), RouteTable.with_nulls(4, 3))


ROWS = [
    RouterCase("top-p", lambda: top_p(8, 6), rule_of_all=top_p_rule(0.4), **P),
    RouterCase("top-p half", lambda: top_p(8, 6, p=0.5), rule_of_all=top_p_rule(0.5), **P),
    RouterCase("top-p strict", lambda: top_p(8, 6, strict=True), rule_of_all=top_p_rule(0.4, strict=True), **P),
    RouterCase(
        "top-p of two at most", lambda: top_p(8, 6, p=0.95, k_max=2, normalise="sum"),
        rule_of_all=top_p_rule(0.95, k_max=2, normalise=True), **P | {"k": 2},
    ),
    RouterCase("top-p all", lambda: top_p(8, 6, p=1.0), rule_of_all=top_p_rule(1.0), **P),
    RouterCase(
        "top-p of sigmoids", lambda: top_p(8, 6, p=0.6, activation="sigmoid", bias=True),
        rule_of_all=top_p_rule(0.6, activation="sigmoid"), **P,
    ),
    RouterCase(
        "top-p of nulls", lambda: over_nulls(TopP(0.7, 7)), rule_of_all=top_p_rule(0.7, normalise=True, true=4),
        by_probs=("score.null_rows",), **P | {"k": 7, "most": 7},
    ),
    RouterCase("min-p", lambda: min_p(8, 6), rule_of_all=min_p_rule(0.5), **P),
    RouterCase(
        "min-p of three at most", lambda: min_p(8, 6, ratio=0.05, k_max=3, normalise="none"),
        rule_of_all=min_p_rule(0.05, k_max=3, normalise=False), **P | {"k": 3},
    ),
    RouterCase("thor", lambda: thor(8, 6, 2), rule_of_all=draw_rule(2, 6), **DRAWN),
    RouterCase(
        "thor by sequence", lambda: thor(8, 6, draw="sequence"), rule_of_all=draw_rule(1, 6, level="sequence"),
        scope="sequence", **DRAWN | {"k": 1},
    ),
    RouterCase(
        "thor by batch", lambda: thor(8, 6, draw="batch"), rule_of_all=draw_rule(1, 6, level="batch"), scope="batch",
        **DRAWN | {"k": 1},
    ),
    RouterCase(
        "thor by position", lambda: thor(8, 6, draw="legacy_position"),
        rule_of_all=draw_rule(1, 6, level="legacy_position"), scope="batch", **DRAWN | {"k": 1},
    ),
    RouterCase(
        "thor distinct", lambda: thor(8, 6, 2, pairing="distinct"), rule_of_all=draw_rule(2, 6, distinct=True), **DRAWN
    ),
    RouterCase(
        "thor average", lambda: thor(8, 6, 6, draw="average"), rule_of_all=draw_rule(6, 6, level="average"),
        **DRAWN | {"k": 6, "stochastic": False, "k_is": "nothing"},
    ),
    RouterCase(
        "thor fixed", lambda: thor(8, 6, draw="fixed", fixed=2), rule_of_all=draw_rule(1, 6, level="fixed:2"),
        **DRAWN | {"k": 1, "stochastic": False, "asked": (("draw", "token"),)},
    ),
    RouterCase(
        "drawn from softmax", lambda: Router(LinearScore(8, 6), Draw(2, 6), Selected()),
        rule_of_all=draw_rule(2, 6, softmax=True), **DRAWN | {"learned": True},
    ),
    RouterCase(
        "expert choice", lambda: expert_choice(8, 6, 2), rule_of_all=expert_choice_rule(2, 6), causal=False,
        k_is="on average", **LIMITED,
    ),
    RouterCase(
        "capacity in training", lambda: with_capacity(top_k(8, 6, 2), 1.0), rule_of_all=capacity_rule(2, 6, 1.0, None),
        **LIMITED | {"variable_k": False, "scope": "token", "alone": True},
    ),
    RouterCase(
        "capacity always", lambda: with_capacity(top_k(8, 6, 2), 1.25, eval_factor=0.8),
        rule_of_all=capacity_rule(2, 6, 1.25, 0.8), causal=False, **LIMITED,
    ),
    RouterCase(
        "capacity by position", lambda: with_capacity(top_k(8, 6, 2), None, eval_factor=1.0, order="position"),
        rule_of_all=capacity_rule(2, 6, None, 1.0, by_position=True), causal=False, **LIMITED,
    ),
    RouterCase(
        "capacity of nulls", lambda: with_capacity(adamoe(8, 4, 3, num_nulls=3), 0.5),
        rule_of_all=capacity_rule(3, 7, 0.5, None, true=4), by_probs=("score.null_rows",),
        **LIMITED | {"k": 3, "most": 7, "scope": "token", "alone": True},
    ),
]  # fmt: skip


@pytest.mark.parametrize("check", ROUTER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_router(case: RouterCase, check: Callable[[RouterCase], None]) -> None:
    check(case)
