"""A mixture-of-experts layer from parts: two of eight experts per item, or one, or none."""

import torch

from coterie.experts import FFN, FFNShape
from coterie.layers import MoE
from coterie.routers import Router, RouteTable
from coterie.routers.score import LinearScore
from coterie.routers.select import TopK
from coterie.routers.weigh import Raw

routes = RouteTable.with_nulls(num_experts=8, num_nulls=4)
router = Router(LinearScore(width=32, num_routes=12), TopK(2, 12), Raw("softmax", renormalise=False), routes)
layer = MoE(router, FFN(8, FFNShape(width=32, inner=64)))
y, routing = layer.route_and_run(torch.randn(4, 10, 32))
y.square().mean().backward()
print(f"{tuple(y.shape)}, {routing.num_assignments / routing.num_items:.2f} experts per item on average")
