"""One step of each regime, in the exact order of its updates.

joint        attack; TRADES (or PGD) and the router's terms on one batch; everything moves
alternating  AdvMoE (arXiv 2308.10110). 1, 2: draw a batch of either side, attack the experts' with what is there;
             3: the experts move; 4: attack the router's batch with the updated experts; 5: the router moves
released     the published code: one batch for both, the router taught the label modulo the number of experts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from coterie.ops.draw import fold, word_of
from coterie.routing import RouteContext
from coterie.training.adversarial.attacks import perturb
from coterie.training.adversarial.learner import SIDES, Learner, Side, learning
from coterie.training.adversarial.losses import (
    image_divergence,
    logits_of,
    route_balance,
    route_drift,
    route_z,
)
from coterie.training.adversarial.options import RobustOptions
from coterie.training.adversarial.view import View, held_still, load_of, route_of, view, view_routers

Batch = tuple[Tensor, Tensor]  # images [B, C, H, W] in [0, 1], labels [B]


@dataclass(frozen=True, eq=False)
class Told:
    """Of one phase.

    Attributes:
        loss: a scalar, with gradient until it was descended.
        parts: its terms by name, before their coefficients.
        load: [R] int64: images on each route, clean ones where they were put through, the sum over routers; None of a
            dense model.
        flips: the share of images whose perturbed copy goes another way; None where that is not known.
        norm: of the gradient.
    """

    loss: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    load: Tensor | None = None
    flips: Tensor | None = None
    norm: float = 0.0

    def record(self, prefix: str = "") -> dict[str, Any]:
        """Numbers for the log."""
        values: dict[str, Any] = {"loss": float(self.loss), "grad_norm": self.norm}
        values |= {name: float(part) for name, part in self.parts.items()}
        values |= {} if self.flips is None else {"flips": float(self.flips)}
        values |= {} if self.load is None else {"load": self.load.tolist()}
        return {prefix + name: value for name, value in values.items()}


class Phases:
    """The steps of one training.

    Args:
        model: a `coterie.models.vision.VisionModel`; mutated by every step, in train mode after it.
        options: regime, losses, attack.
        learner: moves its parameters.
    """

    def __init__(self, model: Any, options: RobustOptions, learner: Learner) -> None:
        self.model, self.options, self.learner = model, options, learner

    def step(self, step: int, batches: Mapping[Side, Batch]) -> dict[str, Any]:
        """One update of everything; numbers for the log. ``batches`` has the experts' and, alternating, the router's.

        Raises:
            TrainingError: a loss or gradient is not finite; the side it belongs to was not moved.
            AttackError: an attack stands still.
        """
        if self.options.regime == "joint":
            return self.joint(step, batches["experts"]).record()
        if self.options.regime == "released":
            experts, router = self.released(step, batches["experts"])
        else:
            experts, router = self.experts(step, batches["experts"]), self.router(step, batches["router"])
        return experts.record() | router.record("router_")

    def joint(self, step: int, batch: Batch) -> Told:
        """Attack, then everything moves."""
        perturbed = self.attacked(step, "joint", batch)
        with learning(self.model, SIDES):
            return self._descended(step, self.cost(step, batch, perturbed, teaches_router=True), SIDES)

    def experts(self, step: int, batch: Batch) -> Told:
        """Attack with what is there, then the experts move; of the router no bit."""
        perturbed = self.attacked(step, "experts", batch)
        with learning(self.model, ("experts",)):
            return self._descended(step, self.cost(step, batch, perturbed, teaches_router=False), ("experts",))

    def router(self, step: int, batch: Batch) -> Told:
        """Attack, then the router moves, by the task's gradient through the gate and its own terms; nothing else."""
        perturbed = self.attacked(step, "router", batch)
        with learning(self.model, ("router",), self.options.router_norm):
            return self._descended(step, self.cost(step, batch, perturbed, teaches_router=True), ("router",))

    def released(self, step: int, batch: Batch) -> tuple[Told, Told]:
        """The published order: stale routes of train mode are attacked twice, and taught the label modulo N."""
        images, labels = batch
        model, learner, losses = self.model.train(), self.learner, self.options.losses
        with learner.autocast():
            kept = view_routers(model, images, self._ctx(step))
        self._seen_for_nothing(images)
        perturbed = self.attacked(step, "experts", batch, kept)
        model.train()
        with learner.autocast():
            clean, seen = view(model, images, self._ctx(step)), view(model, perturbed, self._ctx(step))
        experts = self._descended(step, _told(*_task(clean, seen, labels, losses.beta), clean, seen), ("experts",))
        perturbed = self.attacked(step, "router", batch, kept)
        model.train()
        self._seen_for_nothing(images)
        with learner.autocast():
            moved = view_routers(model, perturbed, self._ctx(step))
        parts = {"label_route": _label_route(kept, labels), "drift": route_drift(kept, moved)}
        loss = losses.drift * (parts["label_route"] + parts["drift"])
        return experts, self._descended(step, _told(loss, parts, kept, moved), ("router",))

    def attacked(self, step: int, phase: str, batch: Batch, stale: View | None = None) -> Tensor:
        """[B, C, H, W]: the batch, perturbed by the attack of the options.

        Args:
            step, phase: what the starts are drawn of.
            batch: images and labels.
            stale: routes to move away from, in place of those of the clean images now.
        """
        images, labels = batch
        seed = fold(fold(self.options.seed, word_of(phase)), step)
        with self.learner.autocast():
            clean = None
            if stale is not None:
                with torch.no_grad(), held_still(self.model):
                    clean = replace(view(self.model, images), routings=stale.detach().routings)
            return perturb(self.model, images, labels, self.options.ascent, seed=seed, clean=clean)

    def cost(self, step: int, batch: Batch, perturbed: Tensor, *, teaches_router: bool) -> Told:
        """The losses of a batch and its perturbed copy, with gradient; modes are the caller's."""
        images, labels = batch
        losses = self.options.losses
        with self.learner.autocast():
            clean = None if losses.form == "pgd" else view(self.model, images, self._ctx(step))
            seen = view(self.model, perturbed, self._ctx(step))
            if clean is None:
                loss = F.cross_entropy(seen.classes, labels)
                parts = {"cross_entropy": loss}
            else:
                loss, parts = _task(clean, seen, labels, losses.beta)
            if teaches_router and losses.of_router:
                if losses.drift and clean is None:
                    clean = view_routers(self.model, images, self._ctx(step))
                terms = _of_router(losses.of_router, clean, seen)
                loss = loss + sum(getattr(losses, name) * term for name, term in terms.items())
                parts |= terms
        return _told(loss, parts, clean, seen)

    def _descended(self, step: int, told: Told, sides: tuple[Side, ...]) -> Told:
        norm = self.learner.descend(told.loss, sides, step)
        parts = {name: part.detach() for name, part in told.parts.items()}
        return replace(told, loss=told.loss.detach(), parts=parts, norm=norm)

    def _ctx(self, step: int) -> RouteContext:
        return RouteContext(step=step, total_steps=self.learner.steps, training=True, seed=self.options.seed)

    def _seen_for_nothing(self, images: Tensor) -> None:
        """A forward whose result is dropped: it moves running statistics, as in the published code."""
        with torch.no_grad(), self.learner.autocast():
            self.model(images)


def _task(clean: View, seen: View, labels: Tensor, beta: float) -> tuple[Tensor, dict[str, Tensor]]:
    parts = {
        "cross_entropy": F.cross_entropy(clean.classes, labels),
        "divergence": image_divergence(clean.classes, seen.classes).mean(),
    }
    return parts["cross_entropy"] + beta * parts["divergence"], parts


def _of_router(names: Sequence[str], clean: View | None, seen: View) -> dict[str, Tensor]:
    views = [seen] if clean is None else [clean, seen]
    terms: dict[str, Callable[[], Tensor]] = {
        "drift": lambda: route_drift(views[0], seen), "balance": lambda: route_balance(*views),
        "z": lambda: route_z(*views),
    }  # fmt: skip
    return {name: terms[name]() for name in names}


def _label_route(seen: View, labels: Tensor) -> Tensor:
    each = [logits_of(routing) for routing in seen.routings]
    return torch.stack([F.cross_entropy(s, labels % s.shape[1]) for s in each]).mean()


def _told(loss: Tensor, parts: Mapping[str, Tensor], clean: View | None, seen: View) -> Told:
    first = (clean or seen).routings
    if not first:
        return Told(loss, parts)
    load = load_of(first)
    if clean is None:
        return Told(loss, parts, load)
    moved = [route_of(one) != route_of(other) for one, other in zip(first, seen.routings, strict=True)]
    return Told(loss, parts, load, torch.stack(moved).float().mean())
