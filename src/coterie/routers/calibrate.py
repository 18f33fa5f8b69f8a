"""From a budget to a threshold: which p, or which ratio of min-p, gives so many experts on average.

Nobody can tell what p costs before seeing a router's probabilities. Given those of some text the answer
needs no search: each route comes in at a setting of its own (`coterie.ops.top_p_entries`), and the mean
is a matter of counting. A frozen model is calibrated once; during training a `Controller` does better.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from coterie.errors import OptionError
from coterie.routers.base import Router
from coterie.routers.routes import RouteTable
from coterie.routers.select.threshold import POINTS, Threshold


def calibrate(routers: Sequence[Router], probs: Sequence[Tensor]) -> dict[str, list[float]]:
    """Measure how mean experts depend on the threshold, and store the curve in every router.

    One setting serves all routers, and the mean is over all their items: layers keep their differences. Afterwards
    ``RouteContext.overrides["mean_experts"]`` works, and `setting_for` finds a setting. Mutates the routers'
    ``curve`` buffers, which are saved with the model.

    Args:
        routers: of one kind, `TopP` or `MinP` somewhere in their selection.
        probs: `Routing.probs` of each router, [T, R], on text like the text to come; a few thousand items do.

    Returns:
        ``mean_experts`` ascending and ``setting``, POINTS numbers each.

    Raises:
        OptionError: a router has no threshold, the kinds differ, or there are no items.
    """
    parts = [threshold_of(router) for router in routers]
    if len(parts) != len(probs) or not parts or len({type(part) for part in parts}) > 1:
        raise OptionError("calibration takes routers of one kind and the probabilities of each of them.")
    items = [table[table.sum(1) > 0] for table in probs]  # padding has none
    entries = [_entries(part, router.routes, rows) for part, router, rows in zip(parts, routers, items, strict=True)]
    num_items = sum(len(rows) for rows in items)
    if num_items == 0:
        raise OptionError("there is no item to calibrate on: give the probabilities of some text.")
    ordered = torch.sort(torch.cat(entries), descending=not parts[0].rising).values
    means, settings = _curve(ordered, num_items, parts[0].rising)
    for part in parts:
        part.store_curve(means, settings)
    return {"mean_experts": means, "setting": settings}


def setting_for(router: Router, mean_experts: float) -> float:
    """The p (or ratio) at which a calibrated ``router`` uses ``mean_experts`` on average.

    Raises:
        OptionError: it is not calibrated, has no threshold, or cannot use that many.
    """
    from coterie.routing import RouteContext

    return threshold_of(router).setting(RouteContext(overrides={"mean_experts": mean_experts}))


def threshold_of(router: Router) -> Threshold:
    """The part of ``router`` that selects by a threshold, wrapped in others or not.

    Raises:
        OptionError: it has none.
    """
    for part in router.select.modules():
        if isinstance(part, Threshold):
            return part
    raise OptionError(f"{type(router.select).__name__} has no threshold. Build a router with top_p or min_p.")


def _entries(part: Threshold, routes: RouteTable, probs: Tensor) -> Tensor:
    """[N]: the settings at which the experts of all items come in; nulls cost nothing and are not counted."""
    entries, order = part.entries(probs.double())
    cap = part.num_routes if part.k_max is None else part.k_max
    true = torch.tensor([expert < routes.num_experts for expert in routes.expert], device=probs.device)
    return entries[:, :cap][true[order[:, :cap]]]


def _curve(ordered: Tensor, num_items: int, rising: bool) -> tuple[list[float], list[float]]:
    """Mean experts and settings, from ``ordered [N]``: the entries as they come in while the setting opens."""
    total = len(ordered)
    always = int((ordered == ordered[0]).sum()) if total else 0  # the best expert of an item comes first of all
    most, least = total / num_items, max(always, 1) / num_items
    means = [least * (most / least) ** (point / (POINTS - 1)) for point in range(POINTS)]
    after = torch.cat([ordered, ordered.new_tensor([1.0 if rising else 0.0])])
    index = torch.tensor([min(max(round(mean * num_items), 1), total) for mean in means])
    # half way between the last that is in and the first that is out
    settings = ((after[index - 1] + after[index]) / 2).clamp(0, 1).tolist()
    settings[-1] = 1.0 if rising else 0.0
    return means, settings
