"""What an attack makes larger, per image. The wording of each is in `Attack`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.training.adversarial.losses import image_divergence, logits_of, route_divergence
from coterie.training.adversarial.view import View, check_routed, route_of

Aim = Literal["ce", "margin", "kl", "kl+router", "router", "released", "released-router"]


@dataclass(frozen=True, eq=False)
class Target:
    """What the value of an aim is computed against.

    Attributes:
        clean: what the model saw in the unperturbed images, without gradient.
        labels: [B] int64.
        router_weight: of the router's term, in the aims that have one.
    """

    clean: View
    labels: Tensor
    router_weight: float


def wrong_by(logits: Tensor, answers: Tensor) -> Tensor:
    """[B]: the largest other logit minus that of the answer; above 0 where the answer is not given."""
    own = logits.gather(1, answers[:, None]).squeeze(1)
    others = logits.scatter(1, answers[:, None], -torch.inf)
    return others.amax(1) - own


def off_route(seen: View, target: Target) -> Tensor:
    """[B]: how far another route is ahead of the clean one; above 0 where the route changed. Summed over routers."""
    pairs = zip(check_routed(seen.routings), check_routed(target.clean.routings), strict=True)
    return torch.stack([wrong_by(logits_of(now), route_of(before)) for now, before in pairs]).sum(0)


def value_of(aim: Aim, seen: View, target: Target) -> Tensor:
    """[B]: what the attack ascends."""
    return _VALUES[aim](seen, target)


def rank_of(aim: Aim, seen: View, target: Target) -> Tensor:
    """[B]: by which the worst of several perturbed images is kept: the margin of the mistake, or of the route."""
    return off_route(seen, target) if aim in ROUTERS_ALONE else wrong_by(seen.classes, target.labels)


def needs_router(aim: Aim) -> bool:
    """Whether there must be a router that decides."""
    return aim not in ("ce", "margin", "kl")


def _cross_entropy(seen: View, target: Target) -> Tensor:
    return F.cross_entropy(seen.classes, target.labels, reduction="none")


def _divergence(seen: View, target: Target) -> Tensor:
    return image_divergence(target.clean.classes, seen.classes)


def _with_router(seen: View, target: Target) -> Tensor:
    return _divergence(seen, target) + target.router_weight * route_divergence(target.clean, seen)


def _label_route(seen: View, target: Target) -> Tensor:
    """The released code trains and attacks its router as a classifier of the label modulo the number of routes."""
    each = [logits_of(routing) for routing in check_routed(seen.routings)]
    return torch.stack([F.cross_entropy(s, target.labels % s.shape[1], reduction="none") for s in each]).mean(0)


def _released(seen: View, target: Target) -> Tensor:
    return _cross_entropy(seen, target) + target.router_weight * _label_route(seen, target)


def _margin(seen: View, target: Target) -> Tensor:
    return wrong_by(seen.classes, target.labels)


ROUTERS_ALONE: tuple[Aim, ...] = ("router", "released-router")
FROM_CLEAN: tuple[Aim, ...] = ("kl", "kl+router")  # zero, gradient included, at the image itself
_VALUES: Mapping[Aim, Callable[[View, Target], Tensor]] = {
    "ce": _cross_entropy, "margin": _margin, "kl": _divergence, "kl+router": _with_router,
    "router": off_route, "released": _released, "released-router": _label_route,
}  # fmt: skip
