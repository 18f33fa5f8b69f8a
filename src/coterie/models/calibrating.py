"""From a budget to a threshold, on a live model and text: how many experts p costs nobody knows beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError, UnsupportedError
from coterie.models.attach import RouterBridge, session_of
from coterie.models.routed import config_of
from coterie.models.session import Session, Usage
from coterie.routers import Router
from coterie.routers.calibrate import calibrate as store_curves
from coterie.routers.calibrate import setting_for, threshold_of
from coterie.routers.select.threshold import Threshold

# measurements at most, and what share of the target is near enough
_ROUNDS, _NEAR = 5, 2e-3


def calibrate(model: Any, ids: Tensor | Iterable[Tensor], target_mean_experts: float | None = None) -> float:
    """Measure on text what thresholds cost, keep the curve with the model, and set the one that costs the target.

    Afterwards ``--mean-experts`` is understood, also of the model saved and loaded. Mutates the model's routers and
    what coterie.json will say of them; weights stay as they are. What later layers see depends on the threshold, so
    it is measured again at each one found, a few times. **Lossy** against the threshold from before.

    Args:
        model: routed by ``top_p``, ``min_p`` or anything else that selects by a threshold. Put in eval mode for it.
        ids: [B, N] tokens, or several such tables, read a few times; some thousand tokens do. No padding.
        target_mean_experts: experts per token and layer; None keeps the threshold and only stores the curve.

    Returns the threshold that is set now.

    Raises:
        UnsupportedError: the model has no routers of ours.
        OptionError: they have no threshold, cannot use that many experts, or there is no text.
    """
    session = session_of(model)
    if session is None:
        raise UnsupportedError(f"{type(model).__name__} has no router of Coterie. Give it one with route(model, spec).")
    routers: dict[str, Router] = {
        part.site: part.inner for part in model.modules() if isinstance(part, RouterBridge)
    }  # fmt: skip
    parts = [threshold_of(router) for router in routers.values()]
    tables = [ids] if isinstance(ids, Tensor) else list(ids)
    before = parts[0].value
    try:
        for _ in range(_ROUNDS):
            seen, mean = _probabilities(model, session, tables, list(routers))
            if target_mean_experts is None:
                break
            if abs(mean - target_mean_experts) <= _NEAR * target_mean_experts:
                break
            store_curves(list(routers.values()), seen)
            _set(parts, setting_for(next(iter(routers.values())), target_mean_experts))
        store_curves(list(routers.values()), seen)
    except BaseException:
        _set(parts, before)
        raise
    if target_mean_experts is not None:
        config_of(model)["router"]["options"][parts[0].name] = parts[0].value
    return parts[0].value


def _set(parts: list[Threshold], value: float) -> None:
    for part in parts:
        part.value = value


@torch.no_grad()
def _probabilities(
    model: Any, session: Session, tables: list[Tensor], sites: list[str]
) -> tuple[list[Tensor], float]:  # fmt: skip
    """[T, R] of every site over all tables, on the CPU, and the mean of experts used."""
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    training, kept = model.training, session.keep
    session.keep = True
    used = Usage()
    model.eval()
    try:
        for table in tables:
            model(table.to(model.device), use_cache=False)
            for site in sites:
                routing = session.routings[site]
                assert routing.probs is not None
                found[site].append(routing.probs.cpu())
                used.assignments, used.items = used.assignments + routing.num_assignments, used.items + table.numel()
    finally:
        model.train(training)
        session.keep, session.routings = kept, {}
    if not all(found.values()):
        raise OptionError("There is no text to calibrate on: give token ids [B, N], a few thousand.")
    return [torch.cat(parts) for parts in found.values()], used.mean_experts
