"""From a budget to a threshold, at rest (calibration) and while learning (controller)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

import pytest
import torch

from coterie.errors import OptionError
from coterie.routers import Controller, Router, RouteTable, calibrate, min_p, setting_for, top_k, top_p, with_capacity
from coterie.routers.score import LinearScore, WithNulls
from coterie.routers.select import TopP
from coterie.routers.weigh import TrueOnly
from coterie.routing import RouteContext, Routing

D, E = 8, 8


def build(preset: Callable[..., Router] = top_p, std: float = 0.5, **options: object) -> Router:
    router = preset(D, E, **options)
    torch.nn.init.normal_(router.score.weight, std=std)  # type: ignore[arg-type]
    return router


def probs_of(router: Router, x: torch.Tensor) -> torch.Tensor:
    probs: torch.Tensor = router(x).probs.detach()
    return probs


def mean(routing: Routing) -> float:
    return float(routing.experts_per_item().float().mean())


def asking(experts: float) -> RouteContext:
    return RouteContext(overrides={"mean_experts": experts})


@pytest.mark.parametrize("preset", [top_p, min_p])
@pytest.mark.parametrize("target", [1.0, 1.3, 2.0, 4.5, 7.9, 8.0])
def test_a_calibrated_router_uses_what_is_asked(preset: Callable[..., Router], target: float) -> None:
    router, x = build(preset), torch.randn(2000, D)
    curve = calibrate([router], [probs_of(router, x)])
    assert curve["mean_experts"] == sorted(curve["mean_experts"])
    assert (curve["mean_experts"][0], curve["mean_experts"][-1]) == pytest.approx((1, E))
    assert mean(router(x, asking(target))) == pytest.approx(target, abs=0.03)
    assert mean(router(torch.randn(2000, D), asking(target))) == pytest.approx(target, abs=0.25)


def test_the_setting_is_the_same_number() -> None:
    router, x = build(), torch.randn(500, D)
    calibrate([router], [probs_of(router, x)])
    by_p = router(x, RouteContext(overrides={"p": setting_for(router, 3.0)}))
    assert torch.equal(by_p.expert, router(x, asking(3.0)).expert)


def test_layers_share_a_setting_and_keep_their_differences() -> None:
    x = torch.randn(1000, D)
    routers = [build(std=std) for std in (0.2, 0.5, 2.0)]
    calibrate(routers, [probs_of(router, x) for router in routers])
    means = [mean(router(x, asking(3.0))) for router in routers]
    assert sum(means) / 3 == pytest.approx(3.0, abs=0.05)
    assert means == sorted(means, reverse=True)
    assert means[0] - means[2] > 1
    assert len({setting_for(router, 3.0) for router in routers}) == 1


def test_a_cap_bounds_what_can_be_asked() -> None:
    router, x = build(k_max=3), torch.randn(1000, D)
    calibrate([router], [probs_of(router, x)])
    assert mean(router(x, asking(2.5))) == pytest.approx(2.5, abs=0.03)
    with pytest.raises(OptionError, match=r"this router can use 1\.00 to 3\.00"):
        router(x, asking(4))


def test_nulls_are_not_counted() -> None:
    score = WithNulls(LinearScore(D, 4), 4, D)
    router = Router(score, TopP(0.5, 8), TrueOnly(4), RouteTable.with_nulls(4, 4))
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x = torch.randn(1500, D)
    calibrate([router], [probs_of(router, x)])
    for target in (1.0, 2.5):
        assert mean(router(x, asking(target))) == pytest.approx(target, abs=0.05)
    assert router.select.stored_curve()[0][0] < 1  # type: ignore[operator, index]


def test_padding_does_not_count_and_a_wrapped_selection_is_found() -> None:
    router, x = build(), torch.randn(1000, D)
    probs = probs_of(router, x)
    limited = with_capacity(router, 2.0)
    calibrate([limited], [torch.cat([probs, torch.zeros(1000, E)])])
    assert mean(limited(x, asking(2.0))) == pytest.approx(2.0, abs=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_curve_is_saved_and_survives_a_cast(dtype: torch.dtype) -> None:
    router, x = build(), torch.randn(1000, D)
    calibrate([router], [probs_of(router, x)])
    setting = setting_for(router, 2.0)
    other = top_p(D, E).to(dtype)
    other.load_state_dict(router.to(dtype).state_dict())
    assert setting_for(other, 2.0) == setting


def test_without_calibration_the_refusal_says_how() -> None:
    for router in (top_p(D, E), min_p(D, E)):
        with pytest.raises(OptionError, match=r"coterie\.routers\.calibrate .*or give p"):
            router(torch.randn(3, D), asking(2))
    assert top_k(D, E, 2)(torch.randn(3, D), asking(2)).num_assignments == 6, "a router without a threshold ignores it"


@pytest.mark.parametrize("target", [0.5, 9, float("nan"), "2", True])
def test_means_out_of_range(target: object) -> None:
    router, x = build(), torch.randn(100, D)
    calibrate([router], [probs_of(router, x)])
    with pytest.raises(OptionError, match="is not allowed"):
        router(x, RouteContext(overrides={"mean_experts": target}))
    with pytest.raises(OptionError, match="give one of them"):
        router(x, RouteContext(overrides={"mean_experts": 2, "p": 0.5}))


def test_what_cannot_be_calibrated() -> None:
    router = build()
    probs = probs_of(router, torch.randn(5, D))
    for routers, tables, text in (
        ([top_k(D, E, 2)], [probs], "has no threshold"),
        ([router, build(min_p)], [probs, probs], "of one kind"),
        ([router], [probs, probs], "each of them"),
        ([], [], "of one kind"),
        ([router], [torch.zeros(3, E)], "no item"),
    ):
        with pytest.raises(OptionError, match=text):
            calibrate(routers, tables)
    with pytest.raises(OptionError, match="has no threshold"):
        setting_for(top_k(D, E, 2), 2.0)


@pytest.mark.parametrize("preset", [top_p, min_p])
def test_a_controller_holds_the_budget_while_a_router_sharpens(preset: Callable[..., Router]) -> None:
    router, x = build(preset, std=0.05), torch.randn(150, D)
    controller = Controller(target=2.0, value=0.5, rising=preset is top_p)
    used = []
    for step in range(230):
        with torch.no_grad():
            router.score.weight.mul_(1.01 if step < 180 else 1.0)  # type: ignore[operator, union-attr]
        used.append(mean(router(x, RouteContext(overrides={"p": controller.value}))))
        controller = controller.update(used[-1])
    assert used[0] > 3
    assert sum(used[100:180]) / 80 == pytest.approx(2.0, abs=0.25)  # behind a moving target, if not far
    assert used[-1] == pytest.approx(2.0, abs=0.03)


@pytest.mark.parametrize(("num_experts", "std"), [(4, 0.3), (4, 1.0), (64, 0.3), (64, 1.0)])
def test_a_controller_settles_whatever_the_router_is_like(num_experts: int, std: float) -> None:
    router, x = top_p(D, num_experts), torch.randn(150, D)
    torch.nn.init.normal_(router.score.weight, std=std)  # type: ignore[arg-type]
    controller = Controller(target=2.0, value=0.5)
    for _ in range(120):
        controller = controller.update(mean(router(x, RouteContext(overrides={"p": controller.value}))))
    assert controller.error == pytest.approx(0, abs=0.02)


def test_a_controller_of_an_offset_of_nulls() -> None:
    controller = Controller(target=1.5, value=0.0, low=-10, high=10, share=False, rising=False)
    experts, nulls = torch.randn(500, 8), torch.randn(500, 8)
    for _ in range(100):
        best = torch.cat([experts, nulls + controller.value], 1).topk(3).indices
        controller = controller.update(float((best < 8).sum(1).float().mean()))
    assert controller.error == pytest.approx(0, abs=0.02)


def test_a_controller_moves_the_right_way_and_stays_in_its_limits() -> None:
    controller = Controller(target=2.0, value=0.5)
    assert controller.update(4.0).value < 0.5 < controller.update(1.0).value
    assert controller.update(2.0).value == pytest.approx(0.5)
    assert dataclasses.replace(controller, rising=False).update(4.0).value > 0.5
    low = controller
    for _ in range(500):
        low = low.update(8.0)
    assert low.value == 1e-4
    assert low.update(1.0).value > 1e-4, "it does not wind up"
    assert Controller(**json.loads(json.dumps(dataclasses.asdict(low)))) == low


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Controller(target=0, value=0.5), "above 0"),
        (lambda: Controller(target=float("nan"), value=0.5), "above 0"),
        (lambda: Controller(target=2, value=1.5), "between its limits"),
        (lambda: Controller(target=2, value=1.0, high=1.0), "above 0 and below 1"),
        (lambda: Controller(target=2, value=0.5).update(float("nan")), "at least one item"),
    ],
)
def test_controllers_refuse(make: Callable[[], object], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()
