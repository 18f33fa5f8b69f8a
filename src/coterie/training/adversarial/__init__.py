"""Learning under attack: attacks that know of routers, losses, phases, and a loop for image classifiers."""

from coterie.training.adversarial.aims import Aim, wrong_by
from coterie.training.adversarial.attacks import Attack, check_images, perturb
from coterie.training.adversarial.fit import RobustRun, fit_robust
from coterie.training.adversarial.judge import Judged, judge, route_load
from coterie.training.adversarial.keeping import Best, best_of, load_best
from coterie.training.adversarial.learner import Learner, learning
from coterie.training.adversarial.losses import (
    image_divergence,
    route_balance,
    route_divergence,
    route_drift,
    route_z,
    trades,
)
from coterie.training.adversarial.options import Descent, RobustLosses, RobustOptions, training_attack
from coterie.training.adversarial.phases import Phases
from coterie.training.adversarial.reroute import reroute
from coterie.training.adversarial.search import RandomSearch, search
from coterie.training.adversarial.view import View, held_still, route_of, view, view_routers

__all__ = [
    "Aim",
    "Attack",
    "Best",
    "Descent",
    "Judged",
    "Learner",
    "Phases",
    "RandomSearch",
    "RobustLosses",
    "RobustOptions",
    "RobustRun",
    "View",
    "best_of",
    "check_images",
    "fit_robust",
    "held_still",
    "image_divergence",
    "judge",
    "learning",
    "load_best",
    "perturb",
    "reroute",
    "route_balance",
    "route_divergence",
    "route_drift",
    "route_load",
    "route_of",
    "route_z",
    "search",
    "trades",
    "training_attack",
    "view",
    "view_routers",
    "wrong_by",
]
