"""Thresholds of a model's routers, kept in step with what is saved with it."""

from __future__ import annotations

from typing import Any

from coterie.routers.select.threshold import Threshold
from coterie.training.step_loss import routers_of


def thresholds(model: Any) -> list[Threshold]:
    """The selections by a threshold in a model's routers, in the order of its layers; none if it routes otherwise."""
    routers = [router for _, router in routers_of(model)]
    parts = [part for router in routers for part in router.modules() if isinstance(part, Threshold)]
    return parts if len(parts) == len(routers) else []


def set_threshold(model: Any, value: float) -> None:
    """Give every router of a model one threshold, and what is saved with the model too. Mutates."""
    record = getattr(model.config, "coterie", None)
    for part in thresholds(model):
        part.value = value
        if isinstance(record, dict):
            record["router"]["options"][part.name] = value
