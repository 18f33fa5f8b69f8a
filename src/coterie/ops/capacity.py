"""Routes with a limited number of places: who keeps one (capacity), and whom they would take (expert choice)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.ops.select import ranked


def within_capacity(chosen: Tensor, priority: Tensor | None, places: int | Tensor, num_routes: int) -> Tensor:
    """[T, K] bool: which choices find a place, when each route has ``places`` of them.

    Args:
        chosen: [T, K] int64, R where empty; empty places keep none.
        priority: [T, K], the highest first, in float32; None or equal: the earlier row first.
        places: per route, one number or [R].
        num_routes: R.
    """
    routes = chosen.reshape(-1)
    keys = routes << 32
    if priority is not None:
        words = (priority.detach().float().reshape(-1) + 0.0).view(torch.int32)
        keys = keys - (words ^ ((words >> 31) & 0x7FFFFFFF))  # ordered as the numbers are; the highest comes first
    order = torch.sort(keys, stable=True).indices
    load = torch.bincount(routes, minlength=num_routes + 1)
    ahead = torch.cumsum(load, 0) - load
    by_route = routes[order]
    rank = torch.arange(len(routes), device=routes.device) - ahead[by_route]
    room = torch.as_tensor(places, device=routes.device).expand(num_routes)
    room = torch.cat([room, room.new_zeros(1)])  # an empty place keeps nothing
    kept = torch.empty_like(routes, dtype=torch.bool)
    kept[order] = rank < room[by_route]
    return kept.view(chosen.shape)


def places_per_route(chosen: Tensor, factor: float, num_routes: int) -> Tensor:
    """[] int64: ``factor`` times the choices that a route would have if all R had equally many, rounded up.

    For T items of K choices this is factor * T * K / R (Switch Transformer, arXiv 2101.03961, equation 3).
    """
    total = (chosen < num_routes).sum()
    return torch.ceil(total.double() * factor / num_routes - 1e-9).long()


def best_items(probs: Tensor, count: int, allowed: Tensor | None = None) -> Tensor:
    """Expert choice (arXiv 2202.09368): each route takes the ``count`` items of highest probability.

    Args:
        probs: [T, R], not negative.
        count: items per route, 0 to T; equal ones go by their row.
        allowed: [T, R] bool; False is never taken.

    Returns:
        chosen [T, K] int64 in descending order of probability, R where empty, K the most that any item has
        (at least 1).

    Raises:
        RoutingError: a probability is NaN.
    """
    num_items, num_routes = probs.shape
    probs = probs.detach() if allowed is None else probs.detach().masked_fill(~allowed, -1)
    taken = torch.zeros_like(probs, dtype=torch.bool)
    if count and num_items:
        _, items = ranked(probs.T.contiguous(), min(count, num_items))
        taken = taken.T.scatter(1, items, True).T & (probs >= 0)
    most = max(int(taken.sum(1).max()) if num_items else 0, 1)
    values, order = ranked(probs.masked_fill(~taken, -1), most)
    return order.masked_fill(values < 0, num_routes)


def check_factor(what: str, factor: object) -> None:
    """Whether ``factor`` is a number above 0.

    Raises:
        OptionError: it is not.
    """
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise OptionError(f"{what}={factor!r} is not allowed: give a number above 0, usually 1 to 2.")
