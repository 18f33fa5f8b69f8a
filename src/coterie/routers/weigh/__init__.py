"""Weigh parts: chosen routes to weights. One file per kind."""

from coterie.routers.weigh.raw import Raw
from coterie.routers.weigh.selected import Selected

__all__ = ["Raw", "Selected"]
