"""Coterie: run, build, train, shrink and compose mixtures of experts.

Names are loaded when first touched, so that ``import coterie`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RouteContext", "RoutePlan", "Routing", "__version__", "doctor", "inspect", "load", "plan", "verify"]

if TYPE_CHECKING:
    from coterie.jobs.checking.doctor import doctor
    from coterie.jobs.inspecting.inspect import inspect
    from coterie.jobs.running.load import load
    from coterie.jobs.running.plan import plan
    from coterie.jobs.running.verify import verify
    from coterie.routing import RouteContext, RoutePlan, Routing

_HOME = {
    "RouteContext": "coterie.routing",
    "RoutePlan": "coterie.routing",
    "Routing": "coterie.routing",
    "doctor": "coterie.jobs.checking.doctor",
    "inspect": "coterie.jobs.inspecting.inspect",
    "load": "coterie.jobs.running.load",
    "plan": "coterie.jobs.running.plan",
    "verify": "coterie.jobs.running.verify",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'coterie' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
