"""Every router, every check: a new part adds a row here and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from coterie.routers import Router, RouteTable, group_limited, hash_routing, sigmoid_bias, top_k
from coterie.routers.score import LinearScore
from coterie.routers.select import GroupLimited, TopK
from coterie.routers.weigh import Raw, Selected
from coterie.testing import ROUTER_CHECKS, RouterCase
from coterie.testing.router_rules import sigmoid_rule, softmax_after_rule, softmax_rule

CORRECTION = [0.3, -0.2, 0.1, 0.0, -0.4, 0.25, 0.05, -0.1]


def corrected(router: Router) -> Router:
    assert isinstance(router.select, TopK | GroupLimited)
    assert router.select.correction is not None
    router.select.correction.copy_(torch.tensor(CORRECTION))
    return router


def with_table(table: RouteTable, k: int) -> Router:
    return Router(LinearScore(8, table.num_routes), TopK(k, table.num_routes), Selected(), table)


ROWS = [
    RouterCase("mixtral", lambda: top_k(8, 6, 2), softmax_rule(renormalise=True), k=2, most=6),
    RouterCase("olmoe", lambda: top_k(8, 6, 3, renormalise=False), softmax_rule(renormalise=False), k=3, most=6),
    RouterCase("qwen3", lambda: top_k(8, 6, 2, rounded=True), softmax_rule(renormalise=True), k=2, most=6),
    RouterCase("gpt-oss", lambda: top_k(8, 6, 2, softmax="after", bias=True), softmax_after_rule(), k=2, most=6),
    RouterCase("float32", lambda: top_k(8, 6, 2, float32=True), softmax_rule(renormalise=True), k=2, most=6),
    RouterCase("sigmoid", lambda: corrected(sigmoid_bias(8, 8, 3)), sigmoid_rule(CORRECTION), k=3, most=8),
    RouterCase(
        "deepseek-v3",
        lambda: corrected(group_limited(8, 8, 3, num_groups=4, keep_groups=2, scale=2.5)),
        sigmoid_rule(CORRECTION, num_groups=4, keep_groups=2, scale=2.5), k=3, most=4,
    ),
    RouterCase(
        "groups uncorrected",
        lambda: Router(
            LinearScore(8, 6),
            GroupLimited(2, 6, num_groups=2, keep_groups=1, corrected=False),
            Raw("sigmoid", renormalise=True),
        ),
        sigmoid_rule([0.0] * 6, num_groups=2, keep_groups=1), k=2, most=3,
    ),
    RouterCase("hash", lambda: hash_routing(32, 6), softmax_after_rule(), k=1, most=6, learned=False),
    RouterCase("hash of two", lambda: hash_routing(32, 6, 2, seed=7), softmax_after_rule(), k=2, most=6, learned=False),
    RouterCase(
        "nulls", lambda: with_table(RouteTable.with_nulls(4, 3), 3), softmax_after_rule(), k=3, most=7, variable_k=True
    ),
    RouterCase(
        "aliases", lambda: with_table(RouteTable.aliases([0, 1, 0, 2, 1]), 3), softmax_after_rule(), k=3, most=5,
        variable_k=True,
    ),
]  # fmt: skip


@pytest.mark.parametrize("check", ROUTER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_router(case: RouterCase, check: Callable[[RouterCase], None]) -> None:
    check(case)
