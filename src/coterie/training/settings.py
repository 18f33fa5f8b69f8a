"""Thresholds of a model's routers, kept in step with what is saved with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from coterie.models.attach import session_of
from coterie.routers import Router
from coterie.routers.calibrate import calibrate, setting_for
from coterie.routers.select.threshold import Threshold
from coterie.training.step_loss import routers_of

_ITEMS = 8192  # that a calibration looks at


def thresholds(model: Any) -> list[Threshold]:
    """The selections by a threshold in a model's routers, in the order of its layers; none if it routes otherwise."""
    parts = [part for _, router in routers_of(model) for part in router.modules() if isinstance(part, Threshold)]
    return parts if len(parts) == len(list(routers_of(model))) else []


def set_threshold(model: Any, value: float) -> None:
    """Give every router of a model one threshold, and what is saved with the model too. Mutates."""
    record = getattr(model.config, "coterie", None)
    for part in thresholds(model):
        part.value = value
        if isinstance(record, dict):
            record["router"]["options"][part.name] = value


@torch.no_grad()
def calibrate_model(model: Any, windows: Tensor, target: float) -> float | None:
    """Set the threshold of all routers so that ``target`` experts are used per token and layer on average. Mutates.

    The whole curve from mean experts to threshold is stored in the routers too, so that ``mean_experts`` can be asked
    for at run time.

    Args:
        model: with routers of `coterie.models.route`; its mode is put to eval and back.
        windows: [B, N] ids of text like the text to come.
        target: experts.

    Returns:
        The threshold; None where the routers have none.

    Raises:
        OptionError: they cannot use that many.
    """
    session, parts = session_of(model), thresholds(model)
    if session is None or not parts:
        return None
    was_training, session.keep = model.training, True
    model.eval()(input_ids=windows[: max(1, _ITEMS // windows.shape[1])].to(model.device), use_cache=False)
    probs: Sequence[Tensor] = [each.probs for each in session.routings.values() if each.probs is not None]
    session.keep, session.routings = False, {}
    model.train(was_training)
    routers = [router for _, router in routers_of(model) if isinstance(router, Router)]
    calibrate(routers, probs)
    value = setting_for(routers[0], target)
    set_threshold(model, value)
    return value
