"""What the checks of the router battery assert over and over."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.routing import Routing
from coterie.testing.router_case import RouterCase


def assert_count(case: RouterCase, routing: Routing, k: int) -> None:
    """As many choices as ``k`` says, in the row's sense of it."""
    assert routing.chosen is not None
    if case.k_is == "exactly":
        assert routing.chosen.shape == (routing.num_items, k)
        return
    counts = (routing.chosen < routing.num_routes).sum(1)
    if case.k_is == "at most":
        assert bool((counts <= k).all())
    elif case.k_is == "on average":
        assert int(counts.sum()) == routing.num_routes * math.ceil(k * routing.num_items / routing.num_routes)


def assert_probs(routing: Routing, allowed: Tensor) -> None:
    """Every probability is one (which NaN is not), and 0 where a route is not allowed."""
    assert routing.probs is not None
    assert bool(((routing.probs >= 0) & (routing.probs <= 1)).all())
    assert not bool(routing.probs[~allowed].any())


def assert_same(found: Routing, expected: Routing) -> None:
    """Same choices; weights to rounding, as a matrix product may sum in another order for another T."""
    assert found.chosen is not None
    assert expected.chosen is not None
    columns = max(found.chosen.shape[1], expected.chosen.shape[1])  # empty places do not tell two choices apart
    one, other = (F.pad(t, (0, columns - t.shape[1]), value=found.num_routes) for t in (found.chosen, expected.chosen))
    assert torch.equal(one, other)
    assert torch.equal(found.item, expected.item)
    assert torch.equal(found.expert, expected.expert)
    torch.testing.assert_close(found.weight, expected.weight)
