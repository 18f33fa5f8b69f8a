"""Every router, every check: a new part adds a row here and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from coterie.routers import (
    Router,
    RouteTable,
    Score,
    Select,
    adamoe,
    cosine,
    group_limited,
    hash_routing,
    rmoe,
    sigmoid_bias,
    smoe_dropout,
    top_k,
)
from coterie.routers.score import Blend, Cosine, Frozen, LinearScore, Recurrent, WithNulls
from coterie.routers.select import AtLeastTrue, GroupLimited, TopK
from coterie.routers.weigh import Raw, Selected, TrueOnly
from coterie.testing import ROUTER_CHECKS, RouterCase
from coterie.testing.router_rules import (
    sigmoid_rule,
    softmax_after_rule,
    softmax_rule,
    true_only_rule,
    uniform_rule,
)

CORRECTION = [0.3, -0.2, 0.1, 0.0, -0.4, 0.25, 0.05, -0.1]


def corrected(router: Router) -> Router:
    assert isinstance(router.select, TopK | GroupLimited)
    assert router.select.correction is not None
    router.select.correction.copy_(torch.tensor(CORRECTION))
    return router


def with_table(table: RouteTable, k: int) -> Router:
    return Router(LinearScore(8, table.num_routes), TopK(k, table.num_routes), Selected(), table)


def nulls_over(inner: Score, select: Select) -> Router:
    """Four true and three null routes."""
    return Router(WithNulls(inner, 3, 8), select, TrueOnly(4), RouteTable.with_nulls(4, 3))


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
    RouterCase(
        "adamoe", lambda: adamoe(8, 4, 3, num_nulls=3), true_only_rule(4), k=3, most=7, variable_k=True,
        by_probs=("score.null_rows",),
    ),
    RouterCase(
        "adamoe safe", lambda: adamoe(8, 4, 3, num_nulls=9, min_true=1), true_only_rule(4, min_true=1), k=3, most=13,
        variable_k=True, by_probs=("score.null_rows",),
    ),
    RouterCase(
        "adamoe identity", lambda: adamoe(8, 4, 3, num_nulls=3, null="identity"), softmax_after_rule(), k=3, most=7,
        variable_k=True,
    ),
    RouterCase(
        "adamoe without nulls", lambda: adamoe(8, 4, 3, num_nulls=0), softmax_rule(renormalise=True), k=3, most=4,
    ),
    RouterCase(
        "rmoe", lambda: rmoe(8, 6, 2, state=4), softmax_after_rule(), k=2, most=6, carries=True, carry_width=4
    ),
    RouterCase(
        "rmoe rnn", lambda: rmoe(8, 6, 2, state=4, cell="rnn"), softmax_after_rule(), k=2, most=6,
        carries=True, carry_width=4,
    ),
    RouterCase(
        "rmoe lstm residual", lambda: rmoe(8, 6, 2, state=4, cell="lstm", residual=0.5, projector="shared"),
        softmax_after_rule(), k=2, most=6, carries=True, carry_width=14,
    ),
    RouterCase(
        "rmoe cosine", lambda: rmoe(8, 6, 2, state=4, readout="cosine"), softmax_after_rule(), k=2, most=6,
        carries=True, carry_width=4,
    ),
    RouterCase(
        "rmoe beside linear", lambda: rmoe(8, 6, 2, state=4, keep_linear=True, bias=True, renormalise=False),
        softmax_rule(renormalise=False), k=2, most=6, carries=True, carry_width=4,
    ),
    RouterCase(
        "rmoe corrected", lambda: corrected(rmoe(8, 8, 3, state=4, activation="sigmoid", scale=2.5, corrected=True)),
        sigmoid_rule(CORRECTION, scale=2.5), k=3, most=8, carries=True, carry_width=4,
    ),
    RouterCase(
        "adamoe corrected", lambda: corrected(adamoe(8, 8, 3, num_nulls=0, activation="sigmoid", corrected=True)),
        sigmoid_rule(CORRECTION), k=3, most=8,
    ),
    RouterCase("smoe-dropout", lambda: smoe_dropout(8, 6, 2), softmax_after_rule(), k=2, most=6, learned=False),
    RouterCase(
        "smoe-dropout uniform", lambda: smoe_dropout(8, 6, 2, uniform=True, output_scale=6.0, orthogonal=True),
        uniform_rule(6.0), k=2, most=6, learned=False,
    ),
    RouterCase("cosine", lambda: cosine(8, 6, 2), softmax_rule(renormalise=True), k=2, most=6),
    RouterCase("cosine raw", lambda: cosine(8, 6, 1, renormalise=False), softmax_rule(renormalise=False), k=1, most=6),
    RouterCase(
        "linear and recurrent", lambda: Router(
            Blend(LinearScore(8, 6), Recurrent(8, 6, state=4), gamma=0.5), TopK(2, 6), Selected()
        ), softmax_after_rule(), k=2, most=6, carries=True, carry_width=4,
    ),
    RouterCase(
        "nulls over cosine", lambda: nulls_over(Cosine(8, 4), TopK(3, 7)), true_only_rule(4), k=3, most=7,
        variable_k=True, by_probs=("score.null_rows",),
    ),
    RouterCase(
        "nulls over recurrent", lambda: nulls_over(Recurrent(8, 4, state=4), AtLeastTrue(TopK(3, 7), 4)),
        true_only_rule(4, min_true=1), k=3, most=7, variable_k=True, carries=True, carry_width=4,
        by_probs=("score.null_rows",),
    ),
    RouterCase(
        "nulls over frozen", lambda: nulls_over(Frozen(8, 4), TopK(3, 7)), true_only_rule(4), k=3, most=7,
        variable_k=True, by_probs=("score.null_rows",),
    ),
]  # fmt: skip


@pytest.mark.parametrize("check", ROUTER_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("case", ROWS, ids=lambda case: case.name)
def test_router(case: RouterCase, check: Callable[[RouterCase], None]) -> None:
    check(case)
