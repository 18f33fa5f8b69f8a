"""A dense layer cut into experts and routed: all of them are the layer, any k an unbiased estimate of it."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.experts import FFN, FFNShape, SharedBias
from coterie.layers import MoE
from coterie.ops import DenseSplit, even_channels, split_dense
from coterie.routers import smoe_dropout
from coterie.routing import RouteContext, Routing

D, INNER, N, T = 8, 24, 6, 20
KINDS = {
    "gated": {"gated": True, "bias": False},
    "gated biased": {"gated": True, "bias": True},
    "plain": {"gated": False, "bias": False},
    "plain biased": {"gated": False, "bias": True},
}


def dense(gated: bool, bias: bool) -> dict[str, Tensor]:
    ups = ("gate_proj", "up_proj") if gated else ("up_proj",)
    weights = {name: torch.randn(INNER, D) for name in ups} | {"down_proj": torch.randn(D, INNER)}
    if bias:
        weights |= {f"{name}_bias": torch.randn(len(weights[name])) for name in list(weights)}
    return weights


def run_dense(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    def linear(name: str, rows: Tensor) -> Tensor:
        return F.linear(rows, weights[name], weights.get(f"{name}_bias"))

    hidden = (
        F.silu(linear("gate_proj", x)) * linear("up_proj", x)
        if "gate_proj" in weights
        else F.silu(linear("up_proj", x))
    )
    return linear("down_proj", hidden)


def routed(split: DenseSplit, k: int, *, gated: bool, bias: bool, fused: bool = False) -> MoE:
    experts = FFN(N, FFNShape(D, INNER // N, gated=gated, bias=bias, fused=fused))
    experts.load_state_dict(dict(split.experts))
    router = smoe_dropout(D, N, k, uniform=True, output_scale=split.output_scale)
    return MoE(router, experts, None if split.bias is None else SharedBias(split.bias))


@pytest.mark.parametrize("order", [None, torch.randperm(INNER, generator=torch.Generator().manual_seed(0))])
@pytest.mark.parametrize("kind", KINDS)
def test_all_experts_are_the_dense_layer(kind, order):
    options = KINDS[kind]
    weights = dense(**options)
    x = torch.randn(T, D)
    expected = run_dense(x, weights)
    for fused in (False, True) if options["gated"] else (False,):
        split = split_dense(weights, even_channels(INNER, N, order), fused=fused)
        y = routed(split, N, **options, fused=fused)(x)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("k", range(1, N + 1))
@pytest.mark.parametrize("kind", ["gated biased", "plain"])
def test_any_k_are_right_on_average(kind, k):
    options = KINDS[kind]
    weights = dense(**options)
    moe = routed(split_dense(weights, even_channels(INNER, N)), k, **options)
    x = torch.randn(T, D)
    subsets = list(itertools.combinations(range(N), k))
    total = torch.zeros(T, D)
    for subset in subsets:
        chosen = torch.tensor(subset).expand(T, k)
        y, routing = moe.route_and_run(x, RouteContext(chosen=chosen))
        assert isinstance(routing, Routing)
        assert routing.expert.view(T, k).tolist() == [list(subset)] * T
        total += y.detach()
    expected = run_dense(x, weights)
    torch.testing.assert_close(total / len(subsets), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_a_softmax_is_near_but_not_the_layer():
    weights = dense(gated=True, bias=False)
    split = split_dense(weights, even_channels(INNER, N))
    moe = routed(split, N, gated=True, bias=False)
    moe.router = smoe_dropout(D, N, N, output_scale=split.output_scale)
    x = torch.randn(T, D)
    gap = (moe(x) - run_dense(x, weights)).norm() / run_dense(x, weights).norm()
    assert 1e-4 < float(gap.detach()) < 0.2  # logits of a frozen router differ by a tenth or so


def test_the_bias_of_the_layer_learns_and_stands_alone():
    bias = SharedBias(torch.randn(D))
    x = torch.randn(2, 3, D).bfloat16()
    assert bias(x).dtype == torch.bfloat16
    assert bias(x).shape == x.shape
    bias(torch.zeros(5, D)).sum().backward()
    assert bias.bias.grad is not None
    assert bias.bias.grad.tolist() == [5.0] * D
