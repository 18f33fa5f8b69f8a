"""What one forward of a training step costs: next tokens, routing, and agreement of two passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from coterie.errors import OptionError
from coterie.models.attach import RouterBridge, session_of
from coterie.models.session import Session
from coterie.routers import Router
from coterie.routers.score import WithNulls
from coterie.routing import RouteContext, Routing
from coterie.training.consistency import divergence, doubled
from coterie.training.next_token import next_token_loss, targets
from coterie.training.objective import Objective
from coterie.training.schedules import Schedule
from coterie.training.watch import Watch

SCHEDULED, WHOLE = ("k", "p", "mean_experts"), ("k",)  # request-time options; those that are whole numbers

Beside = Callable[[tuple[int, int], Mapping[str, Any], Tensor], Mapping[str, Tensor]]
"""((step, micro-step), inputs, logits [B, N, V]) -> further losses by name, means over the predicted tokens."""


@dataclass(frozen=True)
class LearnedSite:
    """What the losses must know of a site's router."""

    learned: bool
    num_nulls: int
    paid: int  # experts that compute: all but an identity that nulls lead to


class StepLoss:
    """The loss of a micro-batch of a model, routed or dense. Sets `Session.base` to where training is. Final.

    Args:
        model: a causal transformers model; routed where it has a session.
        objective: the losses.
        schedules: of request-time options such as k and p.
        seed: of draws.
        beside: further losses; not where every batch is put through twice.
        eval_mode: put the model into eval mode before each forward.

    Raises:
        OptionError: options are scheduled or nulls are named, and the model has no such thing.
    """

    def __init__(
        self, model: Any, objective: Objective, schedules: Mapping[str, Schedule], seed: int = 0, *,
        beside: Beside | None = None, eval_mode: bool = False,
    ) -> None:  # fmt: skip
        self._beside, self._eval_mode = beside, eval_mode
        self.model, self.session = model, session_of(model)
        self.objective, self.schedules = objective, dict(schedules)
        self.routers = dict(routers_of(model))
        self.sites = {name: _facts(router) for name, router in self.routers.items()}
        self.watch = Watch({name: site.paid for name, site in self.sites.items()})
        self._place = (0, 0, 1)
        self._before = self.session.base if self.session is not None else RouteContext()
        self._seed = seed
        if schedules and self.session is None:
            raise OptionError(f"{', '.join(schedules)} cannot be scheduled: this model has no router of ours.")
        for name, course in self.schedules.items():
            _check_course(name, course, list(self.routers.values()))
        if objective.nulls is not None and not any(site.num_nulls for site in self.sites.values()):
            raise OptionError(
                f"The losses say nulls: {objective.nulls}, and no router of the model has nulls. Leave it out, or use "
                "a router with nulls, such as adamoe."
            )

    def begin(self, step: int, micro_step: int, total: int) -> None:
        """Say where training is before the forward."""
        self._place = (step, micro_step, total)
        if micro_step == 0:
            self.watch.new_step()
        if self.session is not None:
            self.session.base = replace(
                self._before, step=step, micro_step=micro_step, total_steps=total, seed=self._seed,
                overrides={**self._before.overrides, **self.scheduled(step, total)},
            )  # fmt: skip

    def end(self) -> None:
        """Leave the session as it was found."""
        if self.session is not None:
            self.session.base, self.session.routings = self._before, {}

    def scheduled(self, step: int, total: int) -> dict[str, float]:
        """Option -> value at a step."""
        return {
            name: course.whole(step, total) if name in WHOLE else course.value(step, total)
            for name, course in self.schedules.items()
        }

    def __call__(self, model: Any, inputs: Mapping[str, Any], step_targets: int | None) -> Tensor:
        """The share of the step's loss that these items bear: the shares of all micro-batches add up to a mean.

        Args:
            model: what is called.
            inputs: input_ids, labels [B, N] (-100 where nothing is predicted), attention_mask where there is padding.
            step_targets: predicted tokens of the whole step.
        """
        given = {name: value for name, value in inputs.items() if name != "labels"}
        consistent = self.objective.consistency is not None
        if self._eval_mode:
            model.eval()
        logits, routings = self._forward(model, doubled(given) if consistent else given, 2 if consistent else 1)
        labels = inputs["labels"].to(logits.device)
        share = targets(inputs) / max(1, step_targets if step_targets is not None else targets(inputs))
        terms = self._terms(logits, labels, routings, _items_mask(given, consistent))
        if self._beside is not None:
            terms |= self._beside(self._place[:2], inputs, logits)
        self.watch.saw({name: float(term.detach()) * share for name, term in terms.items()}, routings)
        return share * torch.stack(list(terms.values())).sum()

    def _forward(self, model: Any, inputs: Mapping[str, Any], passes: int) -> tuple[Tensor, dict[str, Routing]]:
        with _observed(self.session, passes):
            logits: Tensor = model(**inputs, use_cache=False).logits
            return logits, dict(self.session.routings) if self.session is not None else {}

    def _terms(
        self, logits: Tensor, labels: Tensor, routings: Mapping[str, Routing], mask: Tensor | None
    ) -> dict[str, Tensor]:
        step, _, total = self._place
        terms = {"cross_entropy": next_token_loss(logits, labels)}
        if (consistency := self.objective.consistency) is not None:
            first, second = logits[:, :-1].chunk(2)
            weight = consistency.weight(step, total)
            terms["consistency"] = weight * divergence(first, second, labels[:, 1:] != -100)
        learned = {name: (each, self._nulls(name)) for name, each in routings.items() if self._learns(name)}
        return terms | self.objective.routing_loss(self.objective.coefficients(step, total), learned, mask)

    def _learns(self, site: str) -> bool:
        return site not in self.sites or self.sites[site].learned

    def _nulls(self, site: str) -> int:
        nulls = self.sites[site].num_nulls if site in self.sites else 0
        return nulls if nulls > 1 else 0  # a single one has nobody to be averaged with


def _check_course(name: str, course: Schedule, routers: list[Any]) -> None:
    """Whether every value that will be asked for is allowed, before a long run finds out."""
    if name not in SCHEDULED:
        raise OptionError(f"{name!r} cannot be scheduled. What can: {', '.join(SCHEDULED)}.")
    if name == "p" and not all(0 < value <= 1 for value in course.values):
        raise OptionError(f"p is scheduled over {list(course.values)}, and must be above 0, up to 1.")
    most = min((router.routes.num_routes for router in routers if isinstance(router, Router)), default=0)
    if name == "k" and not all(1 <= value <= most for value in course.values):
        raise OptionError(f"k is scheduled over {list(course.values)}, and there are {most} routes: write 1 to {most}.")
    if name == "k":
        course.whole(0, 1)


def routers_of(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(site, router) of every router of ours in a model."""
    for module in model.modules():
        if isinstance(module, RouterBridge):
            yield module.site, module.inner


def _facts(router: Any) -> LearnedSite:
    score = router.score if isinstance(router, Router) else None
    passes = isinstance(router, Router) and router.routes.passes
    return LearnedSite(
        router.learned, score.num_nulls if isinstance(score, WithNulls) else 0, router.num_experts - int(passes)
    )


def _items_mask(inputs: Mapping[str, Any], twice: bool) -> Tensor | None:
    mask = inputs.get("attention_mask")
    if mask is None:
        return None
    flat: Tensor = mask.reshape(-1).bool()
    return torch.cat([flat, flat]) if twice else flat


@contextmanager
def _observed(session: Session | None, passes: int) -> Iterator[None]:
    """Keep the routings of the forward within, and say how many copies of itself its batch is."""
    if session is None:
        yield
        return
    session.keep, session.passes = True, passes
    try:
        yield
    finally:
        session.keep, session.passes, session.routings = False, 1, {}
