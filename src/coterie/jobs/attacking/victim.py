"""The model under attack, as attacks and checks see it: images in, answers and routes out, nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from coterie.jobs.attacking.outcome import Answers
from coterie.routers import fixed_plan
from coterie.routing import RouteContext, RoutePlan
from coterie.training.adversarial import View, route_of, view

__all__ = ["Plan", "Victim"]

Plan = Callable[[Tensor], RouteContext]


class Victim:
    """A classifier of images in evaluation mode, whose caller sees to the mode.

    Args:
        model: a `coterie.models.vision.VisionModel`, or any module from images in [0, 1] to logits.
        batch: images in one forward.
    """

    def __init__(self, model: nn.Module, batch: int) -> None:
        self.model, self.batch = model, batch
        self.sites: Sequence[str] = tuple(getattr(model, "sites", ()))
        self.experts = int(getattr(model, "num_experts", 0)) if self.sites else 0
        self.device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))

    def parts(self, count: int) -> list[Tensor]:
        """Numbers of the images of each batch."""
        return list(torch.arange(count).split(self.batch))

    @torch.no_grad()
    def see(self, images: Tensor, ctx: RouteContext | None = None) -> tuple[Tensor, Tensor | None]:
        """Logits [B, classes] and routes [B, S] of one batch; without routers, or with given routes, None."""
        seen = view(self.model, images.to(self.device), ctx)
        return seen.classes.cpu(), _routes(seen)

    @torch.no_grad()
    def answers(self, images: Tensor, labels: Tensor, plan: Plan | None = None) -> Answers:
        """What is said to ``images [N, C, H, W]``; ``plan`` gives the routes of a batch, default the model's own."""
        made = []
        for part in self.parts(len(images)):
            some = images[part].to(self.device)
            logits, routes = self.see(some, None if plan is None else plan(some))
            made.append((logits.argmax(-1), cross_entropy(logits, labels[part], reduction="none"), routes))
        found = [one[2] for one in made if one[2] is not None]
        predicted, loss = torch.cat([one[0] for one in made]), torch.cat([one[1] for one in made])
        return Answers(predicted, loss, torch.cat(found) if found else None)

    @torch.no_grad()
    def frozen(self, images: Tensor) -> RouteContext:
        """The routes of a clean batch, to be followed whatever becomes of it."""
        plan: RoutePlan = self.model.decide(images.to(self.device))  # type: ignore[operator]
        once = {id(routing): routing.detach() for routing in plan.sites.values()}
        return RouteContext(plan=RoutePlan({site: once[id(routing)] for site, routing in plan.sites.items()}))

    def forced(self, expert: int) -> Plan:
        """Every image through this expert at every site."""

        def plan(images: Tensor) -> RouteContext:
            index = torch.full((len(images),), expert, device=images.device)
            return RouteContext(plan=fixed_plan(index, self.sites, self.experts))

        return plan

    def columns(self, routes: Tensor | None) -> Sequence[str]:
        """Names of the columns of routes [N, S]: "" where all sites share one, none of a dense model."""
        if routes is None:
            return ()
        return ("",) if routes.shape[1] == 1 else tuple(self.sites)


def _routes(seen: View) -> Tensor | None:
    if not seen.routings:
        return None
    return torch.stack([route_of(routing) for routing in seen.routings], dim=1).cpu()
