"""What stochastic experts (THOR, arXiv 2110.04260) must keep: chances, levels, pairs, and independence of company."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.experts import FFN, FFNShape
from coterie.layers import MoE
from coterie.routers import Router, thor
from coterie.routing import RouteContext, Routing

D, E = 8, 5


def places(batch: int, length: int, **fields: Any) -> RouteContext:
    """Items of ``batch`` sequences, row by row."""
    index = torch.arange(batch * length)
    return RouteContext(sequence=index // length, position=index % length, seed=4, site="layer 0", **fields)


def drawn(router: Router, ctx: RouteContext) -> Tensor:
    assert ctx.sequence is not None
    chosen = router(torch.zeros(len(ctx.sequence), D), ctx).chosen
    assert chosen is not None
    return chosen


@pytest.mark.parametrize("k", [1, 2])
def test_every_expert_is_as_likely(k: int) -> None:
    chosen = drawn(thor(D, E, k), places(100, 100))
    assert all(len(set(row)) == k for row in chosen.tolist())
    for rank in chosen.unbind(1):
        counts = torch.bincount(rank, minlength=E).double()
        statistic = float(((counts - 2000) ** 2 / 2000).sum())
        assert statistic < 18.47  # chi-square, 4 degrees of freedom, p = 1e-3


def test_weights_are_equal_shares() -> None:
    routing = thor(D, E, 2)(torch.zeros(20, D), places(4, 5))
    assert routing.weight.tolist() == [0.5] * 40
    assert thor(D, E)(torch.zeros(20, D), places(4, 5)).weight.tolist() == [1.0] * 20


def test_independent_passes_meet_as_often_as_chance_has_it() -> None:
    one, other = (drawn(thor(D, E), places(100, 40, pass_id=number)) for number in (0, 1))
    share = float((one == other).float().mean())
    assert abs(share - 1 / E) < 4 * math.sqrt(0.16 / 4000)


@pytest.mark.parametrize("level", ["token", "sequence", "batch"])
@pytest.mark.parametrize("k", [1, 2])
def test_distinct_passes_never_meet(level: Any, k: int) -> None:
    router = thor(D, E, k, draw=level, pairing="distinct")
    doubled = places(10, 20)
    assert doubled.sequence is not None
    assert doubled.position is not None
    both = replace(
        doubled, sequence=doubled.sequence.repeat(2), position=doubled.position.repeat(2),
        pass_id=torch.arange(400) // 200,
    )  # fmt: skip
    first, second = drawn(router, both).split(200)
    assert not any(set(a) & set(b) for a, b in zip(first.tolist(), second.tolist(), strict=True))
    assert torch.equal(first, drawn(router, doubled))
    assert torch.equal(second, drawn(router, replace(doubled, pass_id=1)))
    if k == 1:  # five passes use every expert once
        passes = torch.cat([drawn(router, replace(doubled, pass_id=number)) for number in range(E)], 1)
        assert passes.sort(1).values.tolist() == [list(range(E))] * 200


def test_distinct_passes_go_round_among_what_is_allowed() -> None:
    router = thor(D, E, 2, pairing="distinct")
    allowed = torch.tensor([True, False, True, False, True])
    for number in range(4):
        chosen = drawn(router, places(5, 5, pass_id=number, allowed=allowed))
        assert all(set(row) <= {0, 2, 4} and len(set(row)) == 2 for row in chosen.tolist())
    one = drawn(router, places(5, 5, pass_id=3, allowed=torch.arange(E) == 1))
    assert one.tolist() == [[1, E]] * 25
    nobody = drawn(router, places(5, 5, pass_id=3, allowed=torch.zeros(E, dtype=torch.bool)))
    assert nobody.tolist() == [[E, E]] * 25


def test_levels() -> None:
    ctx = places(30, 12)
    table = {level: drawn(thor(D, E, draw=level), ctx).view(30, 12) for level in LEVELS}  # type: ignore[arg-type]
    assert all(len(set(row)) == 1 for row in table["sequence"].tolist())
    assert len(set(table["sequence"][:, 0].tolist())) > 1
    assert all(len(set(row)) == 1 for row in table["legacy_position"].T.tolist())
    assert len(set(table["legacy_position"][0].tolist())) > 1
    assert len(table["batch"].unique()) == 1
    assert max(len(set(row)) for row in table["token"].tolist()) > 2


LEVELS = ("token", "sequence", "batch", "legacy_position")


@pytest.mark.parametrize("level", ["token", "sequence", "legacy_position", "batch"])
def test_company_order_and_decoding_change_nothing(level: Any) -> None:
    router, whole = thor(D, E, 2, draw=level), places(6, 9)
    assert whole.sequence is not None
    assert whole.position is not None
    expected = drawn(router, whole)
    shuffled = torch.randperm(54)
    for index in (shuffled, torch.arange(9, 18), *(torch.arange(6) * 9 + step for step in range(9))):
        part = replace(whole, sequence=whole.sequence[index], position=whole.position[index])
        assert torch.equal(drawn(router, part), expected[index])


def test_sites_steps_and_modes_draw_apart() -> None:
    router, ctx = thor(D, 64), places(1, 16)
    training = replace(ctx, training=True)
    contexts = [
        ctx, replace(ctx, site="layer 1"), replace(ctx, seed=5), training, replace(training, step=1),
        replace(training, micro_step=1), replace(training, step=1, micro_step=1),
    ]  # fmt: skip
    draws = {tuple(drawn(router, each)[:, 0].tolist()) for each in contexts}
    assert len(draws) == len(contexts)
    assert torch.equal(drawn(router, ctx), drawn(router, replace(ctx, step=7, micro_step=3)))


@pytest.mark.parametrize(("level", "passes", "most"), [("batch", 1, 1), ("batch", 2, 2)])
def test_a_draw_per_batch_teaches_one_expert_per_pass(level: Any, passes: int, most: int) -> None:
    layer = MoE(thor(D, E, draw=level, pairing="distinct"), FFN(E, FFNShape(D, 4)))
    for number in range(passes):
        layer(torch.randn(20, D), places(4, 5, pass_id=number)).square().sum().backward()
    for parameter in layer.experts.parameters():
        assert parameter.grad is not None
        assert int(parameter.grad.flatten(1).any(1).sum()) == most


@pytest.mark.parametrize("k", [1, 3])
def test_computing_the_drawn_alone_is_computing_all_and_masking(k: int) -> None:
    layer, x, ctx = MoE(thor(D, E, k), FFN(E, FFNShape(D, 4))), torch.randn(20, D), places(4, 5)
    y, routing = layer.route_and_run(x, ctx)
    everyone = Routing.from_padded(torch.ones(20, E), torch.arange(E).expand(20, E), E)
    outputs = layer.experts.rows(x, everyone).view(20, E, D)
    torch.testing.assert_close(y, (routing.dense()[..., None] * outputs).sum(1), rtol=1e-6, atol=1e-6)
    average = layer(x, replace(ctx, overrides={"draw": "average"}))
    torch.testing.assert_close(average, outputs.mean(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(average, layer(x, replace(ctx, overrides={"k": E})), rtol=1e-6, atol=1e-6)


def test_a_fixed_path_has_no_chance_in_it() -> None:
    router = thor(D, E, draw="fixed", fixed=3)
    assert not router.stochastic
    assert not router.learned
    assert router(torch.zeros(2, D)).expert.tolist() == [3, 3]
    assert router(torch.zeros(1, D), RouteContext(overrides={"k": 3})).chosen.tolist() == [[3, 4, 0]]
    assert router(torch.zeros(1, D), RouteContext(overrides={"draw": "fixed:1"})).expert.tolist() == [1]
    shut = RouteContext(allowed=torch.arange(E) != 3)
    assert router(torch.zeros(1, D), shut).expert.tolist() == [4]


@pytest.mark.parametrize(("level", "what"), [("token", "sequence"), ("sequence", "sequence"), ("token", "position")])
def test_a_draw_needs_to_know_who_draws(level: Any, what: str) -> None:
    ctx = replace(places(2, 3), **{what: None})
    with pytest.raises(RoutingError, match=rf"RouteContext\.{what} .*found none: give it, or draw per batch"):
        thor(D, E, draw=level)(torch.zeros(6, D), ctx)
    with pytest.raises(RoutingError, match=r"found \(6,\)"):
        thor(D, E, draw=level)(torch.zeros(5, D), places(2, 3))
    thor(D, E, draw="batch")(torch.zeros(6, D))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"k": 6}, "1 to 5"),
        ({"k": 0}, "1 to 5"),
        ({"draw": "sentence"}, "token, sequence, batch"),
        ({"draw": "token:3"}, "token, sequence, batch"),
        ({"draw": "fixed:x"}, "token, sequence, batch"),
        ({"draw": "fixed", "fixed": 5}, "0 to 4"),
        ({"pairing": "same"}, "'independent' or 'distinct'"),
    ],
)
def test_refusals(options: dict[str, Any], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        thor(D, E, **options)
    if "draw" in options and "fixed" not in options:
        with pytest.raises(OptionError, match=text):
            thor(D, E)(torch.zeros(6, D), replace(places(2, 3), overrides={"draw": options["draw"]}))
