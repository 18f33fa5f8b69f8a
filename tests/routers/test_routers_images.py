"""Routers of images: their nets, their one decision, and routes that are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.routers import FromPlan, ImagePlanner, Router, Score, fixed_plan, routes_of
from coterie.routers.score import PooledScore, ResidualScore, SmallConvScore
from coterie.routers.select import TopK
from coterie.routers.weigh import Raw, StraightThrough
from coterie.routing import RouteContext, RoutePlan

SITES = ("blocks.0.conv1", "blocks.0.conv2")


def parameters_of(score: Score) -> int:
    return sum(p.numel() for p in score.parameters())


def test_the_residual_net_has_the_published_size() -> None:
    assert parameters_of(ResidualScore(2)) == 269_202
    assert parameters_of(ResidualScore(4)) == 269_202 + 2 * 65
    assert len(ResidualScore(2).blocks) == 9
    assert len(ResidualScore(2, depth=8).blocks) == 3


def test_the_residual_net_is_the_textbooks() -> None:
    """Against the same net in plain words, batch statistics included."""
    torch.manual_seed(3)
    score, x = ResidualScore(2, 1, depth=8, width=4), torch.randn(5, 1, 9, 9)

    def norm(y: Tensor) -> Tensor:
        mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
        return (y - mean) / (var + 1e-5).sqrt()

    weights = [p for name, p in score.named_parameters() if p.dim() == 4]
    y = norm(torch.conv2d(x, weights[0], padding=1)).relu()
    for block, stride in enumerate((1, 2, 2)):
        first, second = weights[1 + 2 * block : 3 + 2 * block]
        z = norm(torch.conv2d(y, first, stride=stride, padding=1)).relu()
        z = norm(torch.conv2d(z, second, padding=1))
        short = torch.zeros_like(z)
        start = (z.shape[1] - y.shape[1]) // 2
        short[:, start : start + y.shape[1]] = y[:, :, ::stride, ::stride]
        y = (z + short).relu()
    expected = y.mean((2, 3)) @ score.head.weight.T + score.head.bias
    torch.testing.assert_close(score(x, RouteContext())[0], expected)


def test_the_small_net_has_64_features_whatever_the_size() -> None:
    score = SmallConvScore(2)
    assert parameters_of(score) == 8 * 9 + 8 + 16 * 8 * 9 + 16 + 64 * 2 + 2
    assert [score(torch.rand(3, 1, n, n), RouteContext())[0].shape for n in (4, 8, 28)] == [(3, 2)] * 3


def test_batch_statistics_are_declared() -> None:
    """In training mode the other images matter, and the instance says so."""
    torch.manual_seed(0)
    router = Router(ResidualScore(2, depth=8, width=2), TopK(1, 2), StraightThrough())
    x = torch.rand(6, 3, 8, 8)
    assert router.scope == "batch"
    assert not torch.allclose(router(x).logits[:3], router(x[:3]).logits)
    assert router.eval().scope == "image"
    torch.testing.assert_close(router(x).logits[:3], router(x[:3]).logits)
    assert router.train().scope == "batch"
    assert Router(PooledScore(2, 3), TopK(1, 2), StraightThrough()).scope == "image"


@pytest.mark.parametrize("make", [
    lambda bound: PooledScore(2, 3, bound=bound), lambda bound: SmallConvScore(2, 3, bound=bound),
    lambda bound: ResidualScore(2, depth=8, width=2, bound=bound),
])  # fmt: skip
def test_bounded_logits_stay_in_order(make: Callable[[float], Score]) -> None:
    torch.manual_seed(0)
    free = make(0.0).eval()
    torch.manual_seed(0)
    bounded = make(2.0).eval()
    x = torch.rand(20, 3, 8, 8) * 30
    for score in (free, bounded):
        with torch.no_grad():
            score.head.weight.normal_(std=3, generator=torch.Generator().manual_seed(7))
    logits, squeezed = free(x, RouteContext())[0].detach(), bounded(x, RouteContext())[0].detach()
    assert float(logits.abs().max()) > 2 > float(squeezed.abs().max())
    torch.testing.assert_close(squeezed, logits / (1 + logits.abs() / 2))
    assert torch.equal(squeezed.argmax(1), logits.argmax(1))


@pytest.mark.parametrize(("make", "word"), [
    (lambda: ResidualScore(2, depth=18), "8, 14, 20"), (lambda: ResidualScore(0), "num_routes=0"),
    (lambda: ResidualScore(2, width=0), "width=0"), (lambda: PooledScore(2, 3, bound=-1.0), "bound=-1"),
    (lambda: SmallConvScore(2, bound=float("nan")), "bound=nan"),
    (lambda: StraightThrough("both"), "softmax, selected"),  # type: ignore[arg-type]
])  # fmt: skip
def test_options_that_are_not_allowed(make: Callable[[], object], word: str) -> None:
    with pytest.raises(OptionError, match=word):
        make()


@pytest.mark.parametrize("shape", [(3, 8), (2, 1, 8, 8), (8, 8)])
def test_items_that_are_no_images_of_these_channels(shape: tuple[int, ...]) -> None:
    for score in (PooledScore(2, 3), SmallConvScore(2, 3), ResidualScore(2, depth=8)):
        with pytest.raises(RoutingError, match="C=3"):
            score(torch.rand(shape), RouteContext())


def test_one_decision_for_all_sites() -> None:
    torch.manual_seed(0)
    calls = []
    router = Router(PooledScore(2, 3), TopK(1, 2), StraightThrough())
    router.score.register_forward_hook(lambda *_: calls.append(1))
    planner = ImagePlanner(router, SITES)
    x = torch.rand(5, 3, 4, 4)
    plan = planner.plan(x)
    assert (len(calls), planner.num_experts, planner.scope) == (1, 2, "image")
    assert tuple(plan.sites) == SITES
    assert plan[SITES[0]] is plan[SITES[1]]
    follow = FromPlan(2, scope="image")
    assert follow(x, RouteContext(plan=plan, site=SITES[1])) is plan[SITES[0]]


def test_the_planner_respects_limits() -> None:
    planner = ImagePlanner(Router(PooledScore(2, 3), TopK(1, 2), Raw()), SITES)
    x, ctx = torch.rand(5, 3, 4, 4), RouteContext(allowed=torch.tensor([False, True]))
    assert planner.plan(x, ctx)[SITES[0]].expert.tolist() == [1] * 5
    masked = planner.plan(x, replace(ctx, mask=torch.tensor([True, False, True, True, False])))
    assert masked[SITES[0]].item.tolist() == [0, 2, 3]


@pytest.mark.parametrize("sites", [(), ("a", "a")])
def test_sites_must_be_some_and_each_once(sites: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match="each once"):
        ImagePlanner(Router(PooledScore(2, 3), TopK(1, 2), Raw()), sites)


@given(routes=st.lists(st.integers(0, 4), max_size=20), dtype=st.sampled_from([torch.int64, torch.int32, torch.uint8]))
@settings(deadline=None, max_examples=40)
def test_given_routes(routes: list[int], dtype: torch.dtype) -> None:
    routing = routes_of(torch.tensor(routes, dtype=dtype), 5).check()
    assert (routing.num_items, routing.num_experts, routing.expert.tolist()) == (len(routes), 5, routes)
    assert bool((routing.weight == 1).all())
    assert routing.chosen is not None
    assert routing.chosen.shape == (len(routes), 1)
    plan = fixed_plan(torch.tensor(routes, dtype=dtype), SITES, 5)
    assert plan[SITES[0]] is plan[SITES[1]]


@pytest.mark.parametrize(("index", "word"), [
    (torch.tensor([0, 2]), "found 0 to 2"), (torch.tensor([-1]), "found -1"), (torch.tensor([0.0]), "integers"),
    (torch.tensor([True]), "integers"), (torch.tensor([[0]]), "integers"),
])  # fmt: skip
def test_routes_that_are_none(index: Tensor, word: str) -> None:
    with pytest.raises(RoutingError, match=word):
        routes_of(index, 2)


def test_a_plan_of_images_is_saved(tmp_path) -> None:
    plan = ImagePlanner(Router(PooledScore(2, 3), TopK(1, 2), StraightThrough()), SITES).plan(torch.rand(5, 3, 4, 4))
    plan.save(tmp_path / "plan.safetensors")
    again = RoutePlan.load(tmp_path / "plan.safetensors")
    assert torch.equal(again[SITES[1]].expert, plan[SITES[1]].expert)


# estimators of one gate


def routed(weigh: StraightThrough | Raw) -> tuple[Router, Tensor]:
    torch.manual_seed(0)
    return Router(PooledScore(3, 4), TopK(1, 3), weigh), torch.randn(16, 4, 3, 3)


def gradient_on_logits(weigh: StraightThrough | Raw, pull: Tensor) -> tuple[Tensor, Tensor]:
    """Choices [T, 1], and the gradient of sum(weight * pull) on the logits [T, R]."""
    router, x = routed(weigh)
    routing = router(x)
    assert routing.logits is not None
    assert routing.chosen is not None
    routing.logits.retain_grad()
    (routing.weight * pull).sum().backward()
    assert routing.logits.grad is not None
    return routing.chosen, routing.logits.grad


def test_estimators_choose_alike() -> None:
    """Straight-through weights are 1 to the bit; all three send every image the same way."""
    routings = [routed(weigh)[0](routed(weigh)[1]) for weigh in (StraightThrough(), StraightThrough("selected"), Raw())]
    for routing in routings[:2]:
        assert torch.equal(routing.weight, torch.ones_like(routing.weight))
        assert torch.equal(routing.expert, routings[2].expert)


def test_selected_leaves_other_logits_alone() -> None:
    pull = torch.randn(16)
    chosen, grad = gradient_on_logits(StraightThrough("selected"), pull)
    torch.testing.assert_close(grad, torch.zeros(16, 3).scatter(1, chosen, pull[:, None]))
    assert int((grad != 0).sum()) == 16


def test_softmax_has_the_gradient_of_the_probability() -> None:
    pull = torch.randn(16)
    chosen, grad = gradient_on_logits(StraightThrough(), pull)
    assert torch.equal(grad, gradient_on_logits(Raw(), pull)[1])
    assert bool((grad.gather(1, chosen).squeeze(1) * pull > 0).all())
    torch.testing.assert_close(grad.sum(1), torch.zeros(16), atol=1e-6, rtol=0)


@pytest.mark.parametrize("gap", [1e3, 1e30])
def test_a_wide_gap_keeps_weight_and_gradient_finite(gap: float) -> None:
    for of in ("softmax", "selected"):
        router, x = routed(StraightThrough(of))  # type: ignore[arg-type]
        with torch.no_grad():
            router.score.head.weight.mul_(gap)
        weight = router(x).weight
        assert bool((weight == 1).all())
        weight.sum().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in router.parameters() if p.grad is not None)
