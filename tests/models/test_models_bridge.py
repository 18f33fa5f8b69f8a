"""From transformers' padded table to a Routing, by both ways."""

from __future__ import annotations

import pytest
import torch

from coterie.experts import FFN, FFNShape
from coterie.models.bridge import ExpertsBridge, routing_of
from coterie.routing import Routing

E = 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "indices",
    [[[5, 0, 3]], [[8, 2, 8]], [[8, 8, 8]], [[1, 1, 4]], [[]], [[0, 1, 2], [7, 8, 6]]],
    ids=["one item", "sentinels", "nothing", "twice", "no choice", "two items"],
)
def test_the_short_way_is_the_long_way(indices, dtype):
    indices = torch.tensor(indices, dtype=torch.int64)
    weights = torch.rand(indices.shape).to(dtype).requires_grad_()
    found, expected = routing_of(indices, weights, E), Routing.from_padded(weights, indices, E)
    for name in ("item", "expert", "weight"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
        assert getattr(found, name).dtype == getattr(expected, name).dtype
    assert (found.num_items, found.num_experts) == (expected.num_items, E)
    grads = [torch.autograd.grad(r.weight.square().sum(), weights)[0] for r in (found, expected)]
    assert torch.equal(*grads)


def test_the_bridge_calls_ours():
    experts = FFN(E, FFNShape(width=4, inner=6), method="reference")
    x, indices, weights = torch.randn(3, 4), torch.tensor([[1, 0], [2, 7], [8, 3]]), torch.rand(3, 2)
    bridge = ExpertsBridge(experts)
    assert bridge.num_experts == E
    assert torch.equal(bridge(x, indices, weights), experts(x, Routing.from_padded(weights, indices, E)))
