"""Any router with a limit to what one expert may be given."""

from __future__ import annotations

from coterie.routers.base import Router
from coterie.routers.select import Capacity
from coterie.routers.select.capacity import Order


def with_capacity(
    router: Router, factor: float | None, *, eval_factor: float | None = None, order: Order = "probability"
) -> Router:
    """``router`` with its selection inside a `Capacity`; its parts are shared, nulls need no place.

    In a recipe these are the options ``capacity``, ``eval_capacity`` and ``capacity_order`` of every router.

    Args:
        router: stays as it is.
        factor: places per expert in training, as a multiple of an even share; None: no limit there.
        eval_factor: the same outside training, where a limit makes an item depend on its company.
        order: who goes first, the higher ``probability`` or the earlier ``position``.

    Raises:
        OptionError: as `Capacity`.
    """
    nulls = tuple(r for r, expert in enumerate(router.routes.expert) if expert == router.num_experts)
    select = Capacity(router.select, factor, eval_factor=eval_factor, order=order, unlimited=nulls)
    return Router(router.score, select, router.weigh, router.routes)
