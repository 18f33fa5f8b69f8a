"""The joint of a router and convolutions: what it computes, and what the router learns from."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.experts import BatchNormExperts, ConvExperts
from coterie.layers import RoutedConv, assignments_as_items
from coterie.routers import FromPlan, ImagePlanner, Router, Weigh, fixed_plan, routes_of
from coterie.routers.score import PooledScore
from coterie.routers.select import TopK
from coterie.routers.weigh import Raw, StraightThrough
from coterie.routing import RouteContext, RoutePlan, Routing

SITES = ("0", "1")


class Net(nn.Module):
    """Two routed convolutions behind each other, both following the plan."""

    def __init__(self, num_experts: int = 2, norm: bool = True) -> None:
        super().__init__()
        self.layers = nn.ModuleList([
            RoutedConv(
                FromPlan(num_experts, scope="image"),
                ConvExperts(inputs, 4, num_experts, 3, padding=1),
                BatchNormExperts(4, num_experts) if norm else None,
            )
            for inputs in (3, 4)
        ])  # fmt: skip

    def forward(self, x: Tensor, plan: RoutePlan) -> list[Tensor]:
        """What comes out of each layer."""
        outs = []
        for site, layer in zip(SITES, self.layers, strict=True):
            x = layer(x.relu() if outs else x, RouteContext(plan=plan, site=site))
            outs.append(x)
        return outs


def planner_of(weigh: Weigh, num_experts: int = 2) -> ImagePlanner:
    torch.manual_seed(5)
    return ImagePlanner(Router(PooledScore(num_experts, 3), TopK(1, num_experts), weigh), SITES)


def images(count: int = 8) -> Tensor:
    return torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(2)) * 3


@pytest.mark.parametrize("backend", ["grouped", "masked"])
def test_one_expert_is_the_plain_network_bit_for_bit(backend: str) -> None:
    net = Net(1)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4),
    )  # fmt: skip
    for number, layer in zip((0, 3), net.layers, strict=True):
        layer.conv.backend = backend
        plain[number].weight.data.copy_(layer.conv.weight)
    plan = planner_of(StraightThrough(), 1).plan(images())
    for mode in (True, False):
        assert torch.equal(net.train(mode)(images(), plan)[-1], plain.train(mode)(images()))


def test_equal_experts_make_the_route_indifferent() -> None:
    net = Net(2).eval()
    with torch.no_grad():
        for layer in net.layers:
            layer.conv.weight[4:] = layer.conv.weight[:4]
    outs = [net(images(), fixed_plan(torch.tensor(routes), SITES, 2))[-1] for routes in ([0, 1] * 4, [1] * 8, [0] * 8)]
    for other in outs[1:]:
        torch.testing.assert_close(other, outs[0], atol=1e-6, rtol=0)


def test_permuting_the_batch_permutes_what_comes_out() -> None:
    net, planner, order = Net().eval(), planner_of(StraightThrough()), torch.tensor([3, 1, 7, 0, 5, 2, 6, 4])
    whole = net(images(), planner.plan(images()))[-1]
    shuffled = net(images()[order], planner.plan(images()[order]))[-1]
    torch.testing.assert_close(shuffled, whole[order], atol=1e-5, rtol=0)
    alone = net(images()[:1], planner.plan(images()[:1]))[-1]
    torch.testing.assert_close(alone, whole[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", [True, False])
def test_the_router_learns_from_every_layers_output(norm: bool) -> None:
    """d loss / d chosen logit = sum over layers, channels and pixels of (gradient of the output) * output."""
    net, planner = Net(norm=norm), planner_of(StraightThrough("selected"))
    plan = planner.plan(images())
    routing = plan[SITES[0]]
    assert routing.logits is not None
    assert routing.chosen is not None
    routing.logits.retain_grad()
    outs = net(images(), plan)
    for out in outs:
        out.retain_grad()
    outs[-1].square().sum().backward()
    expected = sum((out.grad * out.detach()).sum((1, 2, 3)) for out in outs)
    assert isinstance(expected, Tensor)
    logits = torch.zeros(8, 2).scatter(1, routing.chosen, expected[:, None])
    torch.testing.assert_close(routing.logits.grad, logits)
    assert int((routing.logits.grad != 0).sum()) == 8  # type: ignore[operator]


def test_gates_agree_forward_and_softmax_differs_backward() -> None:
    results = {}
    for of in ("softmax", "selected"):
        planner = planner_of(StraightThrough(of))  # type: ignore[arg-type]
        torch.manual_seed(0)
        y = Net()(images(), planner.plan(images()))[-1]
        y.square().sum().backward()
        results[of] = y, planner.router.score.head.weight.grad  # type: ignore[attr-defined]
    torch.manual_seed(0)
    plain = Net()(images(), RoutePlan({s: r.detach() for s, r in planner.plan(images()).sites.items()}))[-1]
    assert torch.equal(results["softmax"][0], plain)
    assert torch.equal(results["selected"][0], plain)
    assert not torch.allclose(results["softmax"][1], results["selected"][1])


def test_a_weight_that_is_not_one_multiplies_the_output() -> None:
    torch.manual_seed(0)
    router = Router(PooledScore(2, 3), TopK(1, 2), Raw())
    layer = RoutedConv(router, ConvExperts(3, 4, 2, 3, padding=1), BatchNormExperts(4, 2)).eval()
    y, routing = layer.route_and_run(images())
    plain = RoutedConv(FromPlan(2), layer.conv, layer.norm).eval()
    unit = plain(images(), RouteContext(plan=fixed_plan(routing.expert, [""], 2)))
    assert bool((routing.weight < 1).all())
    torch.testing.assert_close(y, unit * routing.weight.view(-1, 1, 1, 1))
    y.sum().backward()
    assert bool(router.score.head.weight.grad.any())


def test_several_experts_per_image_are_summed() -> None:
    torch.manual_seed(0)
    router = Router(PooledScore(3, 3), TopK(2, 3), Raw())
    layer = RoutedConv(router, ConvExperts(3, 4, 3, 3, padding=1), BatchNormExperts(4, 3)).eval()
    layer.norm.running_mean.normal_()  # type: ignore[union-attr]
    y, routing = layer.route_and_run(images())
    expected = torch.zeros_like(y)
    for expert in range(3):
        rows = layer.conv.rows(images(), routes_of(torch.full((8,), expert), 3))
        rows = layer.norm.rows(rows, routes_of(torch.full((8,), expert), 3))  # type: ignore[union-attr]
        expected += rows * routing.dense()[:, expert].view(-1, 1, 1, 1)
    torch.testing.assert_close(y, expected)


def test_an_image_without_an_expert_is_zero() -> None:
    layer = Net().eval().layers[0]
    plan = fixed_plan(torch.tensor([0, 1] * 4), SITES, 2)
    mask = torch.tensor([True] * 5 + [False] * 3)
    y = layer(images(), RouteContext(plan=plan, site="0", mask=mask))
    assert not bool(y[5:].any())
    torch.testing.assert_close(y[:5], layer(images(), RouteContext(plan=plan, site="0"))[:5])


def test_unit_weights_have_the_gradients_of_the_product() -> None:
    """Twice: the gradient's own gradient is that of the product, too."""
    found: dict[str, list[Tensor]] = {}
    for name in ("ours", "product"):
        torch.manual_seed(0)
        layer = RoutedConv(FromPlan(2), ConvExperts(3, 4, 2, 3))
        x, weight = images().requires_grad_(), torch.ones(8).requires_grad_()
        routing = Routing(torch.arange(8), torch.tensor([0, 1] * 4), weight, 8, 2)
        if name == "ours":
            y = layer(x, RouteContext(plan=RoutePlan({"": routing})))
        else:
            y = layer.conv.rows(x, routing) * weight.view(-1, 1, 1, 1)
        first = torch.autograd.grad(y.pow(3).sum(), [x, weight], create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), [x, weight])  # type: ignore[arg-type]
        found[name] = [y.detach(), *(g.detach() for g in first), *second]
    for ours, product in zip(found["ours"], found["product"], strict=True):
        torch.testing.assert_close(ours, product)


def test_autocast_trains() -> None:
    """Convolutions in bfloat16, statistics, weights and the router's gradient in float32."""
    grads = {}
    for dtype in (torch.float32, torch.bfloat16):
        planner = planner_of(StraightThrough())
        torch.manual_seed(0)
        net = Net()
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            out = net(images(), planner.plan(images()))[-1]
        assert out.dtype == dtype
        out.float().square().mean().backward()
        grads[dtype] = planner.router.score.head.weight.grad  # type: ignore[attr-defined]
        assert all(p.grad.dtype == torch.float32 for p in (*net.parameters(), *planner.parameters()))  # type: ignore[union-attr]
        assert net.layers[0].norm.running_mean.dtype == torch.float32
    assert float(torch.cosine_similarity(*(g.flatten() for g in grads.values()), dim=0)) > 0.99


def test_rows_of_single_experts_are_items_as_they_are() -> None:
    once = routes_of(torch.tensor([1, 0, 1]), 2)
    assert assignments_as_items(once) is once
    twice = Routing(torch.tensor([0, 0, 2]), torch.tensor([0, 1, 1]), torch.ones(3), 3, 2)
    rows = assignments_as_items(twice).check()
    assert (rows.item.tolist(), rows.expert.tolist(), rows.num_items) == ([0, 1, 2], [0, 1, 1], 3)


def test_a_copy_computes_the_same() -> None:
    net, planner = Net().eval(), planner_of(StraightThrough())
    again: Any = deepcopy(net)
    again.load_state_dict(net.state_dict())
    plan = planner.plan(images())
    assert torch.equal(net(images(), plan)[-1], again(images(), plan)[-1])


def test_parts_that_do_not_fit() -> None:
    with pytest.raises(OptionError, match=r"\[2, 3\]"):
        RoutedConv(FromPlan(2), ConvExperts(3, 4, 3, 3))
    with pytest.raises(OptionError, match=r"\[2, 2, 1\]"):
        RoutedConv(FromPlan(2), ConvExperts(3, 4, 2, 3), BatchNormExperts(4, 1))
    with pytest.raises(OptionError, match="norm 5"):
        RoutedConv(FromPlan(2), ConvExperts(3, 4, 2, 3), BatchNormExperts(5, 2))
