"""Who decides: from items to a `coterie.routing.Routing`.

A `Router` is one final class of three parts (`score`, `select`, `weigh`) and a `RouteTable`;
`presets` names the combinations of the papers and checkpoints; a `Planner` decides many sites at
once and `FromPlan` follows it. Whatever changes an answer belongs here, whatever changes only the
time belongs to the store.
"""

from coterie.routers.base import Part, Router, RouterLike, Scope, Score, Scores, Select, Weigh
from coterie.routers.calibrate import calibrate, setting_for
from coterie.routers.controller import Controller
from coterie.routers.image_planner import ImagePlanner, fixed_plan, routes_of
from coterie.routers.planner import FromPlan, Planner
from coterie.routers.presets import (
    PRESETS,
    SiteShape,
    adamoe,
    build_routers,
    cosine,
    expert_choice,
    group_limited,
    hash_routing,
    min_p,
    preset_options,
    rmoe,
    sigmoid_bias,
    smoe_dropout,
    thor,
    top_k,
    top_p,
    with_capacity,
)
from coterie.routers.routes import RouteTable
from coterie.routers.upgrade import add_nulls, add_recurrence

__all__ = [
    "PRESETS",
    "Controller",
    "FromPlan",
    "ImagePlanner",
    "Part",
    "Planner",
    "RouteTable",
    "Router",
    "RouterLike",
    "Scope",
    "Score",
    "Scores",
    "Select",
    "SiteShape",
    "Weigh",
    "adamoe",
    "add_nulls",
    "add_recurrence",
    "build_routers",
    "calibrate",
    "cosine",
    "expert_choice",
    "fixed_plan",
    "group_limited",
    "hash_routing",
    "min_p",
    "preset_options",
    "rmoe",
    "routes_of",
    "setting_for",
    "sigmoid_bias",
    "smoe_dropout",
    "thor",
    "top_k",
    "top_p",
    "with_capacity",
]
