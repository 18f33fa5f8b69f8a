"""Learning under attack: attacks that know of routers, losses, phases, and a loop for image classifiers."""

from coterie.training.adversarial.aims import Aim, wrong_by
from coterie.training.adversarial.attacks import Attack, check_images, perturb
from coterie.training.adversarial.losses import (
    image_divergence,
    route_balance,
    route_divergence,
    route_drift,
    route_z,
    trades,
)
from coterie.training.adversarial.search import RandomSearch, search
from coterie.training.adversarial.view import View, held_still, route_of, view, view_routers

__all__ = [
    "Aim",
    "Attack",
    "RandomSearch",
    "View",
    "check_images",
    "held_still",
    "image_divergence",
    "perturb",
    "route_balance",
    "route_divergence",
    "route_drift",
    "route_of",
    "route_z",
    "search",
    "trades",
    "view",
    "view_routers",
    "wrong_by",
]
