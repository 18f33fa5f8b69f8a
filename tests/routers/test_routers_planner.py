"""Plans: written by a planner, followed by FromPlan, matched by place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from coterie.errors import RoutingError
from coterie.routers import FromPlan, Planner, Router, RouterLike, top_k
from coterie.routing import RouteContext, RoutePlan, Routing

WIDTH, EXPERTS, SITES = 4, 5, ("layers.0.mlp", "layers.1.mlp")


class EarlyGate(Planner):
    """All sites decided from the first hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.routers = nn.ModuleList([top_k(WIDTH, EXPERTS, 2) for _ in SITES])

    def plan(self, x: Tensor, ctx: RouteContext) -> RoutePlan:
        sites = {site: router(x, ctx.at(site)) for site, router in zip(SITES, self.routers, strict=True)}
        return RoutePlan(sites, ctx.sequence, ctx.position, ctx.mask, ctx.ids)


def planned(**changes: Tensor | None) -> tuple[Tensor, RouteContext]:
    """Two sequences of three items, and a context that holds the plan for them."""
    torch.manual_seed(0)
    x = torch.randn(6, WIDTH)
    ctx = RouteContext(sequence=torch.tensor([0, 0, 0, 7, 7, 7]), position=torch.tensor([0, 1, 2, 0, 1, 2]))
    ctx = replace(ctx, **changes)
    return x, replace(ctx, plan=EarlyGate().plan(x, ctx), site=SITES[1])


def same(found: Routing, expected: Routing) -> bool:
    names = ("item", "expert", "weight", "chosen", "logits", "probs")
    return all(torch.equal(getattr(found, n), getattr(expected, n)) for n in names)


def test_follows_its_own_site() -> None:
    x, ctx = planned()
    assert ctx.plan is not None
    for site in SITES:
        assert same(FromPlan(EXPERTS)(x, ctx.at(site)), ctx.plan[site])
    assert not torch.equal(ctx.plan[SITES[0]].weight, ctx.plan[SITES[1]].weight)


def test_the_gradient_reaches_the_planner() -> None:
    x, ctx = planned()
    x = x.requires_grad_()
    torch.manual_seed(0)
    planner = EarlyGate()
    FromPlan(EXPERTS)(x, replace(ctx, plan=planner.plan(x, ctx))).weight.square().sum().backward()
    router = planner.routers[1]
    assert isinstance(router, Router)
    assert all(p.grad is not None and bool(p.grad.any()) for p in router.parameters())


def test_a_saved_plan_replays(tmp_path: Path) -> None:
    x, ctx = planned()
    assert ctx.plan is not None
    ctx.plan.save(tmp_path / "plan.safetensors")
    replay = replace(ctx, plan=RoutePlan.load(tmp_path / "plan.safetensors"))
    assert same(FromPlan(EXPERTS)(x, replay), ctx.plan[ctx.site])


def test_items_are_found_by_place() -> None:
    x, ctx = planned()
    assert ctx.plan is not None
    order = torch.tensor([4, 0, 5])
    asked = replace(ctx, sequence=torch.tensor([7, 0, 7]), position=torch.tensor([1, 0, 2]))
    assert same(FromPlan(EXPERTS)(x[order], asked), ctx.plan[ctx.site].expand(order))


def test_a_plan_in_no_order_serves_too() -> None:
    places = {"sequence": torch.tensor([7, 0, 7, 0, 7, 0]), "position": torch.tensor([2, 1, 0, 0, 1, 2])}
    x, ctx = planned(**places)
    assert ctx.plan is not None
    asked = replace(ctx, sequence=torch.tensor([0, 7]), position=torch.tensor([2, 2]))
    assert same(FromPlan(EXPERTS)(x[:2], asked), ctx.plan[ctx.site].expand(torch.tensor([5, 0])))


def test_the_same_items_in_another_order_are_found_too() -> None:
    x, ctx = planned()
    assert ctx.plan is not None and ctx.sequence is not None and ctx.position is not None  # noqa: PT018
    order = torch.randperm(6)
    asked = replace(ctx, sequence=ctx.sequence[order], position=ctx.position[order])
    assert same(FromPlan(EXPERTS)(x[order], asked), ctx.plan[ctx.site].expand(order))


def test_a_plan_s_padding_is_not_an_item() -> None:
    # the first row is padding that carries the place of a real item
    places = {"sequence": torch.tensor([7, 0, 0, 7, 7, 7]), "position": torch.tensor([0, 1, 2, 0, 1, 2])}
    x, ctx = planned(mask=torch.tensor([False, True, True, True, True, True]), **places)
    assert ctx.plan is not None
    asked = replace(ctx, sequence=torch.tensor([7]), position=torch.tensor([0]), mask=None)
    found = FromPlan(EXPERTS)(x[:1], asked)
    assert found.num_assignments == 2
    assert same(found, ctx.plan[ctx.site].expand(torch.tensor([3])))


def test_masked_items_need_no_place() -> None:
    x, ctx = planned()
    asked = replace(
        ctx, sequence=torch.tensor([0, 99]), position=torch.tensor([2, 0]), mask=torch.tensor([True, False])
    )
    assert FromPlan(EXPERTS)(x[:2], asked).experts_per_item().tolist() == [2, 0]


def test_an_item_that_is_not_planned() -> None:
    x, ctx = planned()
    for sequence, position in ((3, 1), (9, 0), (-1, 0), (0, 3)):
        asked = replace(ctx, sequence=torch.tensor([sequence]), position=torch.tensor([position]))
        with pytest.raises(RoutingError, match=f"sequence {sequence}, position {position}"):
            FromPlan(EXPERTS)(x[:1], asked)


def test_without_places_the_items_must_be_the_same() -> None:
    x, ctx = planned(sequence=None)
    assert ctx.plan is not None
    assert same(FromPlan(EXPERTS)(x, ctx), ctx.plan[ctx.site])
    with pytest.raises(RoutingError, match=r"6 items at 'layers\.1\.mlp', the input 2"):
        FromPlan(EXPERTS)(x[:2], ctx)


def test_an_empty_plan() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    routing = Routing(empty, empty, torch.empty(0), 0, EXPERTS)
    ctx = RouteContext(site="a", plan=RoutePlan({"a": routing}, empty, empty), sequence=empty, position=empty)
    assert FromPlan(EXPERTS)(torch.zeros(0, WIDTH), ctx).num_items == 0
    with pytest.raises(RoutingError, match="0 items"):
        FromPlan(EXPERTS)(torch.zeros(1, WIDTH), replace(ctx, sequence=torch.tensor([0]), position=torch.tensor([0])))


def test_refusals() -> None:
    x, ctx = planned()
    with pytest.raises(RoutingError, match=r"give RouteContext\.plan"):
        FromPlan(EXPERTS)(x)
    with pytest.raises(RoutingError, match="no site 'elsewhere'"):
        FromPlan(EXPERTS)(x, ctx.at("elsewhere"))
    with pytest.raises(RoutingError, match="not 4"):
        FromPlan(4)(x, ctx)


def test_it_passes_where_a_router_is_wanted() -> None:
    followers: list[RouterLike] = [FromPlan(EXPERTS, scope="image", causal=False), top_k(WIDTH, EXPERTS, 2)]
    assert [f.scope for f in followers] == ["image", "token"]
    assert [f.learned for f in followers] == [False, True]
    assert [f.causal for f in followers] == [False, True]
