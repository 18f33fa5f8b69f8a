"""As many routes as it takes: by cumulative probability (top-p) or by a share of the best one (min-p).

Both read the routes in descending order of probability, equal ones in ascending id, in float32 or wider
whatever the logits were: a running sum in bfloat16 gives one item in twelve another number of routes.
`top_p_entries` and `min_p_entries` say at which setting each route comes in, all that calibration needs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.errors import OptionError
from coterie.ops.select import ranked, refuse_nan

_FIRST, _MANY = 8, 8192  # columns looked at first, where the table is large and few are usually enough


def top_p(
    probs: Tensor, p: float, *, strict: bool = False, k_max: int | None = None, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The fewest best routes of each item that together have the share ``p`` of its probability.

    Harder Tasks Need More Experts (arXiv 2403.07652). ``p`` of 0 leaves the best route alone, 1 takes all
    that are allowed, and a larger ``p`` never loses a route. The total need not be 1: what counts is a
    probability's share of it, as for sigmoids. An item without any probability has no route.

    Args:
        probs: [T, R] float32 or wider, not negative.
        p: 0 to 1.
        strict: the sum must pass ``p``, as in the authors' code; otherwise it must reach it.
        k_max: at most so many, the best ones.
        allowed: [T, R] bool; False is never chosen.

    Returns:
        chosen [T, K] int64, R where empty, K the most that any item has (at least 1); and [T] bool: whether
        ``k_max`` cut the item's routes short.

    Raises:
        OptionError: ``p`` is not in 0..1, or ``k_max`` not in 1..R.
        RoutingError: a probability is NaN.
    """
    check_share("p", p)
    most = _most(k_max, probs.shape[1])
    probs = probs.detach() if allowed is None else probs.detach().masked_fill(~allowed, 0)
    if p >= 1:
        return _everything(probs, allowed, most)
    goal = probs.sum(1, keepdim=True) * p
    for columns in _widths(most, probs):
        values, order = ranked(probs, columns)
        so_far = values.cumsum(1)
        short = (so_far <= goal) if strict else (so_far < goal)
        if not bool(short[:, -1].any()):
            break
    taken = F.pad(short[:, :-1], (1, 0), value=True) & (values > 0)
    cut = short[:, -1] if most < probs.shape[1] else torch.zeros_like(short[:, -1])
    return _shown(order, taken, probs.shape[1]), cut


def min_p(
    probs: Tensor, ratio: float, *, k_max: int | None = None, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The routes of each item that have at least ``ratio`` times the probability of its best one.

    Args:
        probs: [T, R] float32 or wider, not negative.
        ratio: 0 (all that are allowed) to 1 (the best one and its equals).
        k_max: at most so many, the best ones.
        allowed: [T, R] bool; False is never chosen.

    Returns:
        chosen [T, K] and [T] bool, as `top_p`.

    Raises:
        OptionError: ``ratio`` is not in 0..1, or ``k_max`` not in 1..R.
        RoutingError: a probability is NaN.
    """
    check_share("the ratio of min-p", ratio)
    most = _most(k_max, probs.shape[1])
    probs = probs.detach() if allowed is None else probs.detach().masked_fill(~allowed, 0)
    if ratio <= 0:
        return _everything(probs, allowed, most)
    refuse_nan(probs)
    enough = (probs >= probs.amax(1, keepdim=True) * ratio) & (probs > 0)
    counts = enough.sum(1)
    values, order = ranked(probs, min(most, max(int(counts.max()), 1) if len(counts) else 1))
    taken = torch.arange(values.shape[1], device=probs.device) < counts[:, None]
    return order.masked_fill(~taken, probs.shape[1]), counts > most


def top_p_entries(probs: Tensor) -> tuple[Tensor, Tensor]:
    """When each route of ``probs [T, R]`` comes in: [T, R] in rank order, and [T, R] int64 of which routes they are.

    `top_p` takes a route where ``p`` is above its entry, and the first of an item always.
    """
    values, order = ranked(probs, probs.shape[1])
    return F.pad(values.cumsum(1)[:, :-1], (1, 0)) / values.sum(1, keepdim=True), order


def min_p_entries(probs: Tensor) -> tuple[Tensor, Tensor]:
    """As `top_p_entries`; `min_p` takes a route where the ratio is at most its entry."""
    values, order = ranked(probs, probs.shape[1])
    return values / values[:, :1], order


def check_share(what: str, value: object) -> None:
    """Whether ``value`` is a number from 0 to 1.

    Raises:
        OptionError: it is not; NaN is not either.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OptionError(f"{what}={value!r} is not allowed: give a number from 0 to 1.")


def _most(k_max: int | None, num_routes: int) -> int:
    if k_max is None:
        return num_routes
    if isinstance(k_max, bool) or not isinstance(k_max, int) or not 1 <= k_max <= num_routes:
        raise OptionError(f"k_max={k_max!r} is not allowed: give a whole number from 1 to {num_routes}, or none.")
    return k_max


def _widths(most: int, probs: Tensor) -> tuple[int, ...]:
    """Column counts to try in turn: a partial sort of a few is far cheaper than a full one."""
    return (_FIRST, most) if most > 2 * _FIRST and probs.numel() >= _MANY else (most,)


def _everything(probs: Tensor, allowed: Tensor | None, most: int) -> tuple[Tensor, Tensor]:
    """All that are allowed, however improbable. A running sum would not do: in float32 it may reach 1 early."""
    shut = probs if allowed is None else probs.masked_fill(~allowed, -1)
    values, order = ranked(shut, most)
    counts = probs.new_full((len(probs),), probs.shape[1]) if allowed is None else allowed.sum(1)
    return _shown(order, values >= 0, probs.shape[1]), counts > most


def _shown(order: Tensor, taken: Tensor, num_routes: int) -> Tensor:
    """[T, K]: ``order [T, C]`` where ``taken``, which is true first and false afterwards in every row."""
    most = int(taken.sum(1).max()) if taken.numel() else 0
    most = max(most, 1)
    return order[:, :most].masked_fill(~taken[:, :most], num_routes)
