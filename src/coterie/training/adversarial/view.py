"""What an attack or a loss sees of a model: its logits, and what each of its routers decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.routing import RouteContext, RoutePlan, Routing


@dataclass(frozen=True, eq=False)
class View:
    """One forward of B images.

    Attributes:
        logits: [B, classes] float32 or wider; None where the routers alone were asked.
        routings: one of each router: one for a router on the image, however many sites follow it; none of a plain
            network, or where the routes were given.
    """

    logits: Tensor | None
    routings: tuple[Routing, ...]

    @property
    def classes(self) -> Tensor:
        """[B, classes]: the logits, where there are any."""
        assert self.logits is not None
        return self.logits

    def detach(self) -> View:
        """Without gradient."""
        logits = None if self.logits is None else self.logits.detach()
        return View(logits, tuple(routing.detach() for routing in self.routings))


def view(model: nn.Module, images: Tensor, ctx: RouteContext | None = None) -> View:
    """Classify ``images [B, C, H, W]``. Gradient flows. A network without ``classify`` is called and has no routers.

    Args:
        model: a `coterie.models.vision.VisionModel`, or any module from images to logits.
        images: in [0, 1].
        ctx: with a ``plan``, the routes of it are followed.

    Raises:
        OptionError: a plain network is asked to follow routes.
    """
    if not is_routed(model):
        if ctx is not None and ctx.plan is not None:
            raise OptionError(f"{type(model).__name__} has no routers that could follow a plan. Leave the plan out.")
        return View(_wide(model(images)), ())
    seen: Any = model.classify(images, ctx)  # type: ignore[operator]
    return View(_wide(seen.logits), routings_of(seen.plan))


def view_routers(model: nn.Module, images: Tensor, ctx: RouteContext | None = None) -> View:
    """The routers' decisions alone; the logits are None. Cheap where one router reads the image.

    Raises:
        OptionError: the model has no router, or follows given routes.
    """
    plan = model.decide(images, ctx) if is_routed(model) else None  # type: ignore[operator]
    return View(None, check_routed(routings_of(plan)))


def is_routed(model: nn.Module) -> bool:
    """Whether the model is one of ours, which tells its routes."""
    return hasattr(model, "classify") and hasattr(model, "decide")


def routings_of(plan: RoutePlan | None) -> tuple[Routing, ...]:
    """Each different decision with logits once: sites that follow one router share it."""
    found: dict[int, Routing] = {}
    for routing in plan.sites.values() if plan is not None else ():
        if routing.logits is not None:
            found.setdefault(id(routing.logits), routing)
    return tuple(found.values())


def check_routed(routings: tuple[Routing, ...]) -> tuple[Routing, ...]:
    """The same, where there are any.

    Raises:
        OptionError: there are none.
    """
    if not routings:
        raise OptionError("The router is asked for and none decides here: the model is dense, or its routes are given.")
    return routings


def route_of(routing: Routing) -> Tensor:
    """[B] int64: the route of each image, e(x)."""
    return routing.expert if routing.chosen is None else routing.chosen[:, 0]


def load_of(routings: Sequence[Routing]) -> Tensor:
    """[R] int64: images on each route, the sum over routers; there is one at least."""
    return torch.stack([torch.bincount(route_of(each), minlength=each.num_routes) for each in routings]).sum(0)


@contextmanager
def held_still(model: nn.Module) -> Iterator[None]:
    """Eval mode and no gradients for parameters within; modes and flags of every part as before afterwards.

    Without parameter gradients a pass back to the images is cheaper. Not thread-safe: the model is changed meanwhile.
    """
    modes = {module: module.training for module in model.modules()}
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval()
        for parameter in asked:
            parameter.requires_grad_(False)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in asked:
            parameter.requires_grad_(True)


def following(ctx: RouteContext | None, step: int = 0, training: bool = False) -> RouteContext:
    """The context of one forward."""
    return replace(ctx or RouteContext(), step=step, training=training)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()
