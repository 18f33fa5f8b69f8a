"""Weigh parts: chosen routes to weights. One file per kind."""

from coterie.routers.weigh.raw import Raw
from coterie.routers.weigh.selected import Selected
from coterie.routers.weigh.straight_through import StraightThrough
from coterie.routers.weigh.true_only import TrueOnly
from coterie.routers.weigh.uniform import Uniform

__all__ = ["Raw", "Selected", "StraightThrough", "TrueOnly", "Uniform"]
