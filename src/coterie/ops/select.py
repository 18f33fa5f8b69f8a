"""Who is chosen: selection rules as pure functions of a score table.

Every rule returns ``chosen [T, K]``: route ids in rank order, best first, and R (the number of
routes) where a place stays empty. Places are empty when an item has fewer than K routes to choose
from; empty places come last.

The order is total: the higher score first, and among equal scores the lower route id. Ties are
common (bfloat16 logits, copied router rows), so an order that a kernel leaves open would let a
device or a batch size decide. A score of -inf is never chosen. NaN sorts above every number and is
refused, so that a broken score is met where it enters instead of vanishing in a sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from coterie.errors import OptionError, RoutingError


def top_k(scores: Tensor, k: int, allowed: Tensor | None = None) -> Tensor:
    """The ``k`` best routes of each item.

    On data without ties this is ``torch.topk`` with ``sorted=True``.

    Args:
        scores: [T, R], any floating dtype.
        k: choices per item, 1 to R.
        allowed: [R] or [T, R] bool; False is never chosen.

    Returns:
        chosen [T, k] int64, R where empty.

    Raises:
        OptionError: ``k`` is not in 1..R.
        RoutingError: a score that may be chosen is NaN.
    """
    num_routes = scores.shape[1]
    check_k(k, num_routes)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    values, order = ranked(scores, k)
    return order.masked_fill(values == float("-inf"), num_routes)


def ranked(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` highest scores of each row, [T, k], and [T, k] int64 of where they stand; equal ones in ascending id.

    No gradient flows.

    Raises:
        RoutingError: a score is NaN.
    """
    scores = scores.detach()
    refuse_nan(scores)
    if k < scores.shape[1] and scores.numel() >= _MANY and scores.dtype in _PACKED:
        return _ranked_packed(scores, k)
    # a stable descending sort keeps equal scores in ascending id, on every device
    values, order = torch.sort(scores, dim=1, descending=True, stable=True)
    return values[:, :k], order[:, :k]


def refuse_nan(scores: Tensor) -> None:
    """Whether ``scores [T, R]`` are numbers.

    Raises:
        RoutingError: some are not; the text says for how many items, and what usually helps.
    """
    if torch.equal(scores, scores):  # NaN equals nothing, not even itself; this is the cheapest way to ask
        return
    count = int(torch.isnan(scores).any(dim=1).sum())
    raise RoutingError(
        f"the router's scores are not numbers (NaN) for {count} of {len(scores)} items: its input or its weights are "
        f"broken. Look for the first layer that gives NaN; train in bfloat16 or float32, or at a lower rate."
    )


_MANY = 8192  # scores in all, from which packing pays
_PACKED = (torch.float32, torch.bfloat16, torch.float16)


def _ranked_packed(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The same by a partial sort, of integers that no two routes share: the score above, the id below."""
    last = scores.shape[1] - 1
    words = (scores.float() + 0.0).view(torch.int32)  # + 0 makes -0 equal to 0
    words = words ^ ((words >> 31) & 0x7FFFFFFF)  # ordered as the numbers are
    keys = (words.long() << 32) + torch.arange(last, -1, -1, device=scores.device)
    order = last - (keys.topk(k, dim=1).values & 0xFFFFFFFF)
    return scores.gather(1, order), order


def group_limited_top_k(
    scores: Tensor, k: int, *, num_groups: int, keep_groups: int, best: int = 2, allowed: Tensor | None = None
) -> Tensor:
    """The ``k`` best routes of each item, all from its ``keep_groups`` best groups.

    Routes form ``num_groups`` equal groups of neighbours; a group's score is the sum of its ``best``
    highest scores (routes that may not be chosen count nothing). DeepSeek-V3 (arXiv 2412.19437,
    section 2.1.2, node-limited routing) has ``best=2``, DeepSeek-V2's rule is ``best=1``.

    Args:
        scores: [T, R], R a multiple of ``num_groups``; corrections are already added.
        k: choices per item, 1 to ``keep_groups * R / num_groups``.
        allowed: [R] or [T, R] bool; False is never chosen.

    Returns:
        chosen [T, k] int64, R where empty.

    Raises:
        OptionError: the groups do not divide R, or fewer than ``k`` routes lie in the groups kept.
    """
    num_items, num_routes = scores.shape
    check_groups(num_routes, k, num_groups, keep_groups)
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    size = num_routes // num_groups
    members = scores.detach().view(num_items, num_groups, size).topk(min(best, size), dim=2).values
    shut = members[..., 0] == float("-inf")
    group_score = members.masked_fill(members == float("-inf"), 0).sum(2).masked_fill(shut, float("-inf"))
    kept = top_k(group_score, keep_groups)
    # one column more than there are groups takes the empty places
    is_kept = torch.zeros(num_items, num_groups + 1, dtype=torch.bool, device=scores.device).scatter(1, kept, True)
    return top_k(scores, k, is_kept[:, :num_groups].repeat_interleave(size, dim=1))


def check_k(k: int, num_routes: int) -> None:
    """Whether ``k`` different routes can be chosen among R.

    Raises:
        OptionError: ``k`` is not in 1..R.
    """
    if not 1 <= k <= num_routes:
        raise OptionError(f"k={k} cannot choose among {num_routes} routes. Ask for 1 to {num_routes}.")


def check_groups(num_routes: int, k: int, num_groups: int, keep_groups: int) -> None:
    """Whether `group_limited_top_k` can serve these numbers.

    Raises:
        OptionError: the groups do not divide R, or fewer than ``k`` routes lie in the groups kept.
    """
    if num_groups < 1 or num_routes % num_groups:
        raise OptionError(f"{num_routes} routes do not fall into {num_groups} equal groups. Choose a divisor.")
    if not 1 <= keep_groups <= num_groups:
        raise OptionError(f"keep_groups={keep_groups} is not in 1..{num_groups}, the number of groups.")
    most = keep_groups * (num_routes // num_groups)
    if not 1 <= k <= most:
        raise OptionError(f"k={k} is not in 1..{most}, the routes in {keep_groups} of {num_groups} groups.")


def hash_choice(ids: Tensor, table: Tensor) -> Tensor:
    """The routes a fixed table names for each token id (Hash Layers, arXiv 2106.04426).

    Args:
        ids: [T] int64, each in 0..V-1.
        table: [V, K] int64 route ids in rank order.

    Returns:
        chosen [T, K] int64.

    Raises:
        RoutingError: a token id is not in the table.
    """
    size = table.shape[0]
    if ids.numel() and bool(((ids < 0) | (ids >= size)).any()):
        raise RoutingError(
            f"the hash table names routes for token ids 0 to {size - 1}, found {int(ids.min())} to {int(ids.max())}. "
            f"Build it with the model's vocabulary size."
        )
    return table[ids]
