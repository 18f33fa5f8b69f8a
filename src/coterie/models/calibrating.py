"""From a budget to a threshold, on a live model and text: how many experts p costs nobody knows beforehand."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from coterie.errors import OptionError, UnsupportedError
from coterie.models.attach import RouterBridge, session_of
from coterie.models.routed import config_of
from coterie.models.session import Session
from coterie.routers import Router
from coterie.routers.calibrate import calibrate as store_curves
from coterie.routers.calibrate import setting_for, threshold_of


def calibrate(model: Any, ids: Tensor | Iterable[Tensor], target_mean_experts: float | None = None) -> float:
    """Measure on text what thresholds cost, keep the curve with the model, and set the one that costs the target.

    Afterwards ``--mean-experts`` is understood, also of the model saved and loaded. Mutates the model's routers and
    what coterie.json will say of them; weights stay as they are. Exact for the text given: there the mean over tokens
    and layers is the target. Lossy against the threshold from before.

    Args:
        model: routed by ``top_p``, ``min_p`` or anything else that selects by a threshold. Put in eval mode for it.
        ids: [B, N] tokens, or several such tables; some thousand tokens do. No padding.
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
    seen = _probabilities(model, session, [ids] if isinstance(ids, Tensor) else ids, list(routers))
    store_curves(list(routers.values()), seen)
    if target_mean_experts is not None:
        value = setting_for(next(iter(routers.values())), target_mean_experts)
        for part in parts:
            part.value = value
        config_of(model)["router"]["options"][parts[0].name] = value
    return parts[0].value


@torch.no_grad()
def _probabilities(model: Any, session: Session, tables: Iterable[Tensor], sites: list[str]) -> list[Tensor]:
    """[T, R] of every site over all tables, on the CPU."""
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    training, kept = model.training, session.keep
    session.keep = True
    model.eval()
    try:
        for table in tables:
            model(table.to(model.device), use_cache=False)
            for site in sites:
                probs = session.routings[site].probs
                assert probs is not None
                found[site].append(probs.cpu())
    finally:
        model.train(training)
        session.keep, session.routings = kept, {}
    if not all(found.values()):
        raise OptionError("There is no text to calibrate on: give token ids [B, N], a few thousand.")
    return [torch.cat(parts) for parts in found.values()]
