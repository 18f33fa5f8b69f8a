"""Plans: saving, loading, and what a reader is told when the file is none."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from coterie.errors import RoutingError
from coterie.routing import RouteContext, RoutePlan, Routing

SITES = ("model.layers.0.mlp", "model.layers.1.mlp.experts")
TABLES = ("item", "expert", "weight", "chosen", "logits", "probs")


def routing(seed: int, **facts: Any) -> Routing:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 4, generator=generator)
    weights, indices = logits.softmax(1).topk(2)
    return Routing.from_padded(weights, indices, 4, chosen=indices, logits=logits, probs=logits.softmax(1), **facts)


def full_plan() -> RoutePlan:
    sequence, position = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 1])
    sites = {site: routing(n) for n, site in enumerate(SITES)}
    return RoutePlan(sites, sequence, position, position >= 0, torch.arange(5) + 100, model="abc")


def same(first: RoutePlan, second: RoutePlan) -> bool:
    tables = [(first.sites[s], second.sites[s], n) for s in first.sites for n in TABLES]
    items = [(first, second, n) for n in ("sequence", "position", "mask", "ids")]
    return (
        list(first.sites) == list(second.sites)
        and first.model == second.model
        and all(s.num_experts == second.sites[n].num_experts for n, s in first.sites.items())
        and all(equal(getattr(a, n), getattr(b, n)) for a, b, n in [*tables, *items])
    )


def equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first, second)


def test_round_trip(tmp_path: Path) -> None:
    plan = full_plan()
    plan.save(tmp_path / "plan.safetensors")
    assert same(RoutePlan.load(tmp_path / "plan.safetensors"), plan)
    assert [p.name for p in tmp_path.iterdir()] == ["plan.safetensors"]


def test_round_trip_of_little(tmp_path: Path) -> None:
    empty = torch.empty(0, dtype=torch.int64)
    nothing = Routing(empty, empty, torch.empty(0), 0, 3)
    for plan in (
        RoutePlan({}),
        RoutePlan({"": nothing}),
        RoutePlan({"a": replace(routing(1), chosen=None, probs=None)}),
    ):
        plan.save(str(tmp_path / "plan"))
        assert same(RoutePlan.load(str(tmp_path / "plan")), plan)


def test_one_routing_may_serve_many_sites(tmp_path: Path) -> None:
    shared = routing(0)
    square = torch.arange(25.0).view(5, 5)
    turned = replace(shared, logits=square, probs=square.T)
    plan = RoutePlan({"a": shared, "b": shared, "c": turned}, ids=shared.item[:5])
    plan.save(tmp_path / "plan")
    assert same(RoutePlan.load(tmp_path / "plan"), plan)


def test_gradient_is_left_behind(tmp_path: Path) -> None:
    weights = torch.ones(1, 1, requires_grad=True)
    RoutePlan({"a": Routing.from_padded(weights, torch.zeros(1, 1).long(), 1)}).save(tmp_path / "plan")
    assert not RoutePlan.load(tmp_path / "plan")["a"].weight.requires_grad


def test_saving_again_replaces(tmp_path: Path) -> None:
    full_plan().save(tmp_path / "plan")
    other = RoutePlan({"only": routing(9)})
    other.save(tmp_path / "plan")
    assert same(RoutePlan.load(tmp_path / "plan"), other)


def test_saving_where_one_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for target in ("missing/plan", "file/plan", "folder"):
        with pytest.raises(RoutingError, match="cannot be written"):
            full_plan().save(tmp_path / target)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_missing_folder_text_and_truncated_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no plan at all, only words that go on for a while")
    full_plan().save(tmp_path / "plan")
    (tmp_path / "cut").write_bytes((tmp_path / "plan").read_bytes()[:-10])
    for name in ("missing", ".", "text", "cut"):
        with pytest.raises(RoutingError, match="cannot be read as a route plan"):
            RoutePlan.load(tmp_path / name)


ABOUT = {"coterie": "RoutePlan", "version": "1", "model": "", "sites": "{}"}
SITE = {"key": 0, "items": 1, "experts": 2}
FOREIGN: dict[str, dict[str, str] | None] = {
    "no metadata": None,
    "another tool": {"format": "pt"},
    "another kind": {**ABOUT, "coterie": "Checkpoint"},
    "another version": {**ABOUT, "version": "2"},
}
DAMAGED: dict[str, dict[str, str]] = {
    "no sites": {n: t for n, t in ABOUT.items() if n != "sites"},
    "no model": {n: t for n, t in ABOUT.items() if n != "model"},
    "sites of noise": {**ABOUT, "sites": "{"},
    "sites of list": {**ABOUT, "sites": "[1]"},
    "site without tensors": {**ABOUT, "sites": json.dumps({"a": {**SITE, "key": 5}})},
    "site without size": {**ABOUT, "sites": json.dumps({"a": {"key": 0}})},
    "items of text": {**ABOUT, "sites": json.dumps({"a": {**SITE, "items": "many"}})},
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_files_that_are_no_plan_of_this_version(kind: str, tmp_path: Path) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / "file", metadata=FOREIGN[kind])
    with pytest.raises(RoutingError, match="no route plan of version 1"):
        RoutePlan.load(tmp_path / "file")


@pytest.mark.parametrize("kind", DAMAGED)
def test_plans_that_contradict_themselves(kind: str, tmp_path: Path) -> None:
    tensors = {"sites.0.item": torch.zeros(1).long(), "sites.0.expert": torch.zeros(1).long()}
    save_file({**tensors, "sites.0.weight": torch.zeros(1)}, tmp_path / "file", metadata=DAMAGED[kind])
    with pytest.raises(RoutingError, match="damaged"):
        RoutePlan.load(tmp_path / "file")


def test_a_site_that_is_not_there() -> None:
    plan = full_plan()
    assert plan[SITES[1]] is plan.sites[SITES[1]]
    with pytest.raises(RoutingError, match=r"no site 'elsewhere'; it has: model\.layers\.0\.mlp, model\.layers\.1"):
        plan["elsewhere"]
    with pytest.raises(RoutingError, match="it has: none"):
        RoutePlan({})["a"]


def test_how_many_items() -> None:
    assert full_plan().num_items == 5
    assert RoutePlan({}).num_items == 0


def test_the_next_layer_s_context_differs_in_site_and_carry_only() -> None:
    ctx = RouteContext(site="a", ids=torch.arange(3), seed=7, overrides={"k": 2}, carry=torch.ones(3))
    there, carry = ctx.at("b"), torch.zeros(3)
    assert (there.site, there.carry) == ("b", None)
    assert ctx.at("b", carry).carry is carry
    others = [f.name for f in fields(ctx) if f.name not in ("site", "carry")]
    assert all(getattr(there, n) is getattr(ctx, n) for n in others)
    with pytest.raises(AttributeError):
        ctx.site = "c"  # type: ignore[misc]
