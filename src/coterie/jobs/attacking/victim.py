"""The model under attack, as the attacks and the checks see it: batches in, answers and routes out, nothing changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from coterie.jobs.attacking.outcome import Answers
from coterie.models.vision import VisionModel
from coterie.routers import fixed_plan
from coterie.routing import RouteContext, RoutePlan, Routing

__all__ = ["Victim"]

Plan = Callable[[Tensor], RoutePlan | None]


class Victim:
    """A `VisionModel` in evaluation mode.

    Args:
        model: is given back as it was found: see `held`.
        batch: images in one forward.
    """

    def __init__(self, model: VisionModel, batch: int) -> None:
        self.model, self.batch = model, batch

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def experts(self) -> int:
        """E; 0 of a dense model."""
        return self.model.num_experts if self.model.sites else 0

    @contextmanager
    def held(self) -> Iterator[Victim]:
        """In evaluation mode meanwhile; training flags are put back, module by module."""
        flags = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            yield self
        finally:
            for module, flag in flags:
                module.training = flag

    def parts(self, count: int) -> list[slice]:
        """Slices of one batch each over ``count`` images."""
        return [slice(at, min(at + self.batch, count)) for at in range(0, count, self.batch)]

    @torch.no_grad()
    def logits(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """[B, classes] and routes [B, S] (None of a dense model) of one batch, at the model's free choice."""
        seen = self.model.classify(images.to(self.device))
        return seen.logits.float().cpu(), self._routes(seen.plan)

    @torch.no_grad()
    def answers(self, images: Tensor, labels: Tensor, plan: Plan | None = None) -> Answers:
        """What is said to ``images [N, C, H, W]``; ``plan`` makes the routes of a batch, default the model's own."""
        made = []
        for part in self.parts(len(images)):
            some = images[part].to(self.device)
            seen = self.model.classify(some, None if plan is None else RouteContext(plan=plan(some)))
            loss = cross_entropy(seen.logits.float(), labels[part].to(self.device), reduction="none")
            made.append((seen.logits.argmax(-1).cpu(), loss.cpu(), self._routes(seen.plan)))
        routes = [one[2] for one in made if one[2] is not None]
        return Answers(
            torch.cat([one[0] for one in made]), torch.cat([one[1] for one in made]), torch.cat(routes) if routes else None
        )  # fmt: skip

    @torch.no_grad()
    def frozen(self, images: Tensor) -> RoutePlan | None:
        """The routes of a clean batch, to be followed whatever becomes of it. None of a dense model."""
        plan = self.model.decide(images.to(self.device))
        return None if plan is None else RoutePlan(_detached(plan))

    def forced(self, expert: int) -> Plan:
        """Every image through this expert at every site."""

        def plan(images: Tensor) -> RoutePlan:
            index = torch.full((len(images),), expert, device=images.device)
            return fixed_plan(index, self.model.sites, self.experts)

        return plan

    def sites(self, images: Tensor) -> Sequence[str]:
        """Names of the columns of routes: "" where all sites share one, none of a dense model."""
        plan = self.frozen(images[:1])
        if plan is None:
            return ()
        return ("",) if len({id(routing) for routing in plan.sites.values()}) == 1 else tuple(plan.sites)

    def _routes(self, plan: RoutePlan | None) -> Tensor | None:
        if plan is None:
            return None
        once = {id(routing): routing for routing in plan.sites.values()}
        return torch.stack([routing.padded(1)[1][:, 0] for routing in once.values()], dim=1).cpu()


def _detached(plan: RoutePlan) -> dict[str, Routing]:
    """Sites that share a routing go on sharing it."""
    once = {id(routing): routing.detach() for routing in plan.sites.values()}
    return {site: once[id(routing)] for site, routing in plan.sites.items()}
