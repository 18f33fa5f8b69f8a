"""What a request may ask of the routers, and what it costs in memory."""

from __future__ import annotations

import pytest
import torch

from coterie.errors import OptionError
from coterie.models import RouteOptions, RouterSpec, calibrate, find_sites, route, routed_as
from coterie.models.requests import most_experts, understood
from coterie.routers import PRESETS, SiteShape, build_routers
from coterie.testing.checkpoints import tiny_model

OPTIONS = {"group_limited": {"num_groups": 4, "keep_groups": 2}}
KNOWN = {"top_p": {"k", "p"}, "min_p": {"k", "p"}, "thor": {"k", "draw"}}


def router(name, **options):
    return build_routers(name, [SiteShape(32, 8, 3, 320)], {**OPTIONS.get(name, {}), **options})[0]


@pytest.mark.parametrize("name", list(PRESETS))
def test_what_a_router_understands_is_found_by_asking_it(name):
    assert understood(router(name)) == KNOWN.get(name, {"k"})


def test_mean_experts_are_understood_once_calibrated(prompt):
    model = tiny_model("mixtral")
    route(model, RouterSpec("top_p"))
    inner = find_sites(model)[0].gate.inner
    assert "mean_experts" not in understood(inner)
    calibrate(model, prompt)
    assert "mean_experts" in understood(inner)


@pytest.mark.parametrize(
    ("name", "made", "asked", "most"),
    [
        ("top_k", {}, {}, 3), ("top_k", {"k": 5}, {}, 5), ("top_k", {}, {"k": 2}, 2), ("top_k", {}, {"k": 99}, 8),
        ("top_p", {}, {}, 8), ("top_p", {"k_max": 4}, {}, 4), ("top_p", {"k_max": 4}, {"k": 2}, 2),
        ("thor", {}, {}, 3), ("thor", {}, {"draw": "average"}, 8), ("thor", {"draw": "average"}, {}, 8),
        ("thor", {"draw": "average"}, {"draw": "token"}, 3), ("adamoe", {"k": 12}, {}, 8), ("rmoe", {}, {}, 3),
        ("top_k", {"capacity": 1.0}, {}, 3),
    ],
)  # fmt: skip
def test_memory_is_made_for_the_most_experts_an_item_may_have(name, made, asked, most):
    assert most_experts(router(name, **made), 3, RouteOptions(**asked)) == most


@torch.no_grad()
def test_requests_hold_inside_the_with_alone(prompt):
    model = tiny_model("mixtral", k=3)
    session = route(model, RouterSpec("top_k")).session
    before = model(prompt).logits
    with routed_as(model, RouteOptions(k=1, seed=4)) as inside:
        assert inside is session
        assert (session.base.overrides, session.base.seed) == ({"k": 1}, 4)
        assert not torch.equal(model(prompt).logits, before)
        assert session.usage.mean_experts == 1
    assert torch.equal(model(prompt).logits, before)
    assert (dict(session.base.overrides), session.base.seed, session.counting) == ({}, 0, False)
    with routed_as(tiny_model("mixtral"), RouteOptions(seed=1)) as none:
        assert none is None


def test_what_is_not_understood():
    model = tiny_model("mixtral")
    with pytest.raises(OptionError, match=r"--k 2 asks the routers.*family's own.*coterie train --help"):
        routed_as(model, RouteOptions(k=2)).__enter__()
    route(model, RouterSpec("top_p"))
    with pytest.raises(OptionError, match=r"do not know --draw; they take --k, --p\."):
        routed_as(model, RouteOptions(draw="token")).__enter__()
    with pytest.raises(OptionError, match=r"--mean-experts needs a calibrated model.*calibrate\(model"):
        routed_as(model, RouteOptions(mean_experts=2.0)).__enter__()


@pytest.mark.parametrize("wrong", [{"k": 0}, {"p": 0.0}, {"p": 1.5}, {"p": float("nan")}, {"mean_experts": 0.0}])
def test_values_that_no_router_takes(wrong):
    with pytest.raises(OptionError, match="is not allowed"):
        RouteOptions(**wrong)
