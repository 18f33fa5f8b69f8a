"""Named combinations of parts: a function whose signature is its recipe schema.

Every argument is a number, a word or a truth value, so that a recipe file can hold it. The first
three are what a site knows by itself (D, E and k); a preset whose routers share parts from layer to
layer also takes ``follow``, the router of the layer before. `PRESETS` has them by name, and
`build_routers` makes those of a whole model.
"""

from coterie.routers.presets.adamoe import adamoe
from coterie.routers.presets.build import PRESETS, SiteShape, build_routers, preset_options
from coterie.routers.presets.capacity import with_capacity
from coterie.routers.presets.checkpoints import group_limited, hash_routing, sigmoid_bias, top_k
from coterie.routers.presets.cosine import cosine
from coterie.routers.presets.expert_choice import expert_choice
from coterie.routers.presets.rmoe import rmoe
from coterie.routers.presets.smoe_dropout import smoe_dropout
from coterie.routers.presets.stochastic import thor
from coterie.routers.presets.threshold import min_p, top_p

__all__ = [
    "PRESETS",
    "SiteShape",
    "adamoe",
    "build_routers",
    "cosine",
    "expert_choice",
    "group_limited",
    "hash_routing",
    "min_p",
    "preset_options",
    "rmoe",
    "sigmoid_bias",
    "smoe_dropout",
    "thor",
    "top_k",
    "top_p",
    "with_capacity",
]
