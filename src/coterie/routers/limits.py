"""What a context says about logits: biases to add, routes and items to leave out."""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError
from coterie.routers.routes import RouteTable
from coterie.routing import RouteContext


def biased(logits: Tensor, routes: RouteTable, ctx: RouteContext) -> Tensor:
    """``logits [T, R]`` plus `RouteContext.bias`; null routes get none.

    The bias is [T, E] (a row per item), [1, E] (one row for all), or [B, 1, E] (a row per sequence,
    looked up by ``ctx.sequence``). [B, E] is read per sequence too, as long as B is not T: of one
    item from each of B shuffled sequences nobody can tell which is meant, and it is refused.

    Raises:
        RoutingError: the rows fit neither items nor sequences, or could mean either.
    """
    if ctx.bias is None:
        return logits
    return logits + routes.per_route(_per_item(ctx.bias, logits.shape[0], ctx.sequence), 0)


def allowed_routes(logits: Tensor, routes: RouteTable, ctx: RouteContext) -> Tensor | None:
    """[T, R] bool from ``ctx.allowed`` ([E] or [T, E]) and ``ctx.mask`` ([T]); None where neither is given.

    Null routes are always allowed to an item that is not masked.

    Raises:
        RoutingError: a table does not fit T items and E experts.
    """
    if ctx.allowed is None and ctx.mask is None:
        return None
    num_items = logits.shape[0]
    allowed = torch.ones(num_items, routes.num_routes, dtype=torch.bool, device=logits.device)
    if ctx.allowed is not None:
        table = ctx.allowed.bool()
        if table.shape not in ((routes.num_experts,), (num_items, routes.num_experts)):
            raise RoutingError(
                f"allowed must be [E={routes.num_experts}] or [T={num_items}, E], found {tuple(table.shape)}."
            )
        allowed = allowed & routes.per_route(table, True)
    if ctx.mask is not None:
        if ctx.mask.shape != (num_items,):
            raise RoutingError(f"mask must be [T={num_items}], found {tuple(ctx.mask.shape)}.")
        allowed = allowed & ctx.mask.bool()[:, None]
    return allowed


def replayed(chosen: Tensor, logits: Tensor, allowed: Tensor | None) -> Tensor:
    """``chosen [T, K]`` decided earlier, without the routes that are not allowed now.

    Raises:
        RoutingError: it has other items, or names a route that is not there.
    """
    num_items, num_routes = logits.shape
    if chosen.dim() != 2 or chosen.shape[0] != num_items:
        raise RoutingError(f"a replay of {num_items} items needs chosen [T, K], found {tuple(chosen.shape)}.")
    if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) <= num_routes:
        raise RoutingError(
            f"a replay names routes {int(chosen.min())} to {int(chosen.max())} of 0 to {num_routes - 1}."
        )
    if allowed is None:
        return chosen
    shut = torch.cat([~allowed, allowed.new_zeros(num_items, 1)], dim=1).gather(1, chosen)
    return chosen.masked_fill(shut, num_routes)


def asked_k(default: int, most: int, ctx: RouteContext) -> int:
    """K of this call: ``ctx.overrides["k"]`` where given, in 1..``most``.

    Raises:
        OptionError: the override is no whole number in that range.
    """
    k = ctx.overrides.get("k", default)
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= most:
        raise OptionError(f"k={k!r} is not allowed here: ask for a whole number from 1 to {most}.")
    return k


def _per_item(bias: Tensor, num_items: int, sequence: Tensor | None) -> Tensor:
    if bias.dim() == 3 and bias.shape[1] == 1:
        return _by_sequence(bias[:, 0], sequence)
    if bias.dim() != 2:
        raise RoutingError(f"bias must be [T={num_items}, E] or [B, E], found {tuple(bias.shape)}.")
    if bias.shape[0] == 1:
        return bias
    if bias.shape[0] != num_items:
        return _by_sequence(bias, sequence)
    if sequence is not None and _is_shuffled(sequence):
        raise RoutingError(
            f"a bias of {num_items} rows for one item of each of {num_items} sequences may be meant per item or "
            f"per sequence. Write bias[:, None] ([B, 1, E]) per sequence, bias[sequence.argsort()][:, None] per item."
        )
    return bias


def _is_shuffled(sequence: Tensor) -> bool:
    """Whether the sequence ids are 0..T-1 once each, in another order than that."""
    in_order = torch.arange(len(sequence), device=sequence.device)
    return not torch.equal(sequence, in_order) and torch.equal(sequence.sort().values, in_order)


def _by_sequence(bias: Tensor, sequence: Tensor | None) -> Tensor:
    if sequence is None:
        raise RoutingError(f"a bias of {bias.shape[0]} rows is per sequence: give RouteContext.sequence too.")
    if sequence.numel() and int(sequence.max()) >= bias.shape[0]:
        raise RoutingError(f"sequence {int(sequence.max())} has no row in a bias of {bias.shape[0]} rows.")
    return bias[sequence]
