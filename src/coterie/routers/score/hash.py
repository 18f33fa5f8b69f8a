"""Routing by token id: a fixed table, nothing learned."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.ops.select import check_k, hash_choice
from coterie.routers.base import Score
from coterie.routing import RouteContext


class HashScore(Score):
    """Logit 0 for the routes a table names for the item's token id, -inf for all others.

    Equal logits share equally under softmax, and a bias can still order or weigh the routes named.
    Hash Layers (Roller et al. 2021, arXiv 2106.04426) name one route per token. The table is part
    of the saved state.

    Args:
        table: [V, K] int64 route ids, K different ones per token.
        num_routes: R.

    Raises:
        OptionError: the table names a route that is not there.
    """

    table: Tensor

    def __init__(self, table: Tensor, num_routes: int) -> None:
        super().__init__()
        if table.dim() != 2 or table.numel() == 0 or int(table.min()) < 0 or int(table.max()) >= num_routes:
            raise OptionError(f"a hash table is [V, K] with route ids 0 to {num_routes - 1}.")
        self.num_routes = num_routes
        self.register_buffer("table", table.long())

    def forward(self, x: Tensor, ctx: RouteContext) -> tuple[Tensor, Tensor | None]:
        if ctx.ids is None or ctx.ids.shape != x.shape[:1]:
            found = None if ctx.ids is None else tuple(ctx.ids.shape)
            raise RoutingError(f"hash routing needs RouteContext.ids [T={x.shape[0]}], found {found}.")
        logits = torch.full((x.shape[0], self.num_routes), float("-inf"), device=x.device)
        return logits.scatter(1, hash_choice(ctx.ids, self.table), 0.0), None


def random_table(vocab_size: int, num_routes: int, k: int = 1, *, seed: int = 0) -> Tensor:
    """[V, k] int64: ``k`` different routes for every token id, drawn uniformly, the same for the same seed.

    Raises:
        OptionError: ``k`` is not in 1..R.
    """
    check_k(k, num_routes)
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(vocab_size, num_routes, generator=generator).topk(k, dim=1).indices
