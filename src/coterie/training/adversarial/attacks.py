"""Attacks on image classifiers that know of routers: projected gradient ascent in the ball of the largest change.

    x'_0 = x + start,   x' <- clip_[0,1](project_{|x'-x| <= epsilon}(x' + step_size * sign(gradient of the aim)))

Madry et al. 2018 (arXiv 1706.06083); with the aim "kl" the inner attack of TRADES (arXiv 1901.08573), with
"kl+router" that of AdvMoE (arXiv 2308.10110). Draws are a function of (seed, restart, number of the image), so an
image gets the same start in any batch. `coterie.training.adversarial.search` is an attack without gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from coterie.errors import AttackError, NoGradientError, OptionError
from coterie.routing import RouteContext
from coterie.training.adversarial.aims import FROM_CLEAN, ROUTERS_ALONE, Aim, Target, needs_router, rank_of, value_of
from coterie.training.adversarial.starts import Start, ball, image_keys, started
from coterie.training.adversarial.view import View, check_routed, following, held_still, view, view_routers

Keep = Literal["last", "worst"]
Watch = Callable[[int, Tensor, Tensor], None]
_RELEASED_WEIGHT = 6.0


@dataclass(frozen=True)
class Attack:
    """Projected gradient ascent. Images are in [0, 1]; epsilon and step size are of that range.

    Attributes:
        epsilon: the largest change of any value, above 0, at most 1 (which is no bound).
        steps, step_size: of the ascent.
        start: "uniform" in the ball, "gaussian" with deviation 0.001, or "none".
        restarts: ascents from different starts, of which each image keeps the worst.
        aim: what grows. "ce", the cross entropy of the label; "margin", the largest other logit minus the label's;
            "kl", the divergence from the clean prediction; "kl+router", that and the divergence from the clean
            routing; "router", the margin by which another route leads, whatever the prediction; "released", the
            cross entropy and that of the route (label mod N), as the published code evaluates with, which weakens
            it; "released-router", the latter alone.
        router_weight: of the router's term; None is 1, and 6 in "released" as published.
        keep: of one ascent the "last" point, or the "worst" seen on the way: the one nearest to, or furthest into, a
            mistake (a change of route, where the aim is the router alone). "worst" costs one forward more.

    Raises:
        OptionError: a value is not allowed.
    """

    epsilon: float = 8 / 255
    steps: int = 10
    step_size: float = 2 / 255
    start: Start = "uniform"
    restarts: int = 1
    aim: Aim = "ce"
    router_weight: float | None = None
    keep: Keep = "last"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if self.steps < 1 or self.restarts < 1:
            raise OptionError(f"steps and restarts must be at least 1, not {self.steps} and {self.restarts}.")
        if not (math.isfinite(self.step_size) and self.step_size > 0):
            raise OptionError(f"step_size must be above 0, not {self.step_size}. A quarter of epsilon is usual.")
        for what, word, kind in (("start", self.start, Start), ("aim", self.aim, Aim), ("keep", self.keep, Keep)):
            if word not in get_args(kind):
                raise OptionError(f"{what}={word!r} is not known. Write one of: {', '.join(get_args(kind))}.")
        if self.start == "none" and self.aim in FROM_CLEAN:
            raise OptionError(
                f"aim={self.aim!r} has no slope at the clean image itself. Give start='gaussian' or 'uniform'."
            )
        if self.router_weight is not None and not (math.isfinite(self.router_weight) and self.router_weight >= 0):
            raise OptionError(f"router_weight must be at least 0, not {self.router_weight}.")

    @property
    def weight(self) -> float:
        """`router_weight`, or its default."""
        if self.router_weight is not None:
            return self.router_weight
        return _RELEASED_WEIGHT if self.aim == "released" else 1.0


def check_epsilon(epsilon: float) -> None:
    """Refuse what is no bound of a change of values in [0, 1].

    Raises:
        OptionError: it is not above 0 and at most 1.
    """
    if not 0 < epsilon <= 1:
        raise OptionError(
            f"epsilon={epsilon:g} must be above 0 and at most 1: values of images are in [0, 1]. "
            "Eight steps of 255 are 8/255."
        )


def perturb(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    attack: Attack,
    *,
    seed: int = 0,
    index: Tensor | None = None,
    ctx: RouteContext | None = None,
    clean: View | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """[B, C, H, W] float32: the images, changed by at most epsilon and within [0, 1], in the model's worst interest.

    The model is in eval mode meanwhile; parameters, buffers, flags and ``.grad`` are as before afterwards. Equal seeds
    give equal images. Not thread-safe.

    Args:
        model: a `coterie.models.vision.VisionModel`, or any module from images to logits, which then has no router.
        images: [B, C, H, W] in [0, 1].
        labels: [B] int64.
        attack: which.
        seed: of the starts.
        index: [B] int64, the number of each image: of what its start is drawn. Default: its place in the batch.
        ctx: with a ``plan`` the routes are given and cannot be attacked: frozen to those of the clean images, or one
            route for all (`coterie.routers.image_planner`).
        clean: what the perturbed images are compared with; default: what the model says of the images, in eval mode.
        watch: called before every step with the number of the step, the aim's value [B], and the largest absolute
            gradient of each image [B].

    Raises:
        OptionError: images outside [0, 1], labels outside the classes, or a router is attacked that is not there.
        AttackError: the gradient is no number, or zero for every image: accuracy under such an attack means nothing.
        RoutingError: a router's scores are no numbers.
    """
    check_images(images, labels)
    with held_still(model), torch.enable_grad():
        sight = view_routers if attack.aim in ROUTERS_ALONE else view
        now = following(ctx)
        if clean is None:
            with torch.no_grad():
                clean = sight(model, images, now)
        _check_target(attack, clean, labels)
        ascent = _Ascent(model, images, Target(clean.detach(), labels, attack.weight), attack, now, sight, watch)
        keys = image_keys("attack", seed, images, index)
        kept, rank = ascent.climb(started(images, attack.start, attack.epsilon, keys, 0))
        for restart in range(1, attack.restarts):
            found, reached = ascent.climb(started(images, attack.start, attack.epsilon, keys, restart))
            kept, rank = worse_of(kept, rank, found, reached)
        return kept


@dataclass(frozen=True, eq=False)
class _Ascent:
    model: nn.Module
    images: Tensor
    target: Target
    attack: Attack
    ctx: RouteContext
    sight: Callable[[nn.Module, Tensor, RouteContext], View]
    watch: Watch | None

    def climb(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """(points [B, C, H, W], rank [B]) of one start. Ranks are computed only where they are asked for."""
        attack = self.attack
        low, high = ball(self.images, attack.epsilon)
        ranked = attack.keep == "worst" or attack.restarts > 1
        worst, rank = point, point.new_full((len(point),), -torch.inf)
        for step in range(attack.steps):
            gradient, seen = self._gradient(point, step)
            if attack.keep == "worst":
                worst, rank = worse_of(worst, rank, point, rank_of(attack.aim, seen, self.target).detach())
            point = torch.clamp(point + attack.step_size * gradient.sign_(), low, high)
        if not ranked:
            return point, rank
        with torch.no_grad():
            reached = rank_of(attack.aim, self.sight(self.model, point, self.ctx), self.target)
        return worse_of(worst, rank, point, reached) if attack.keep == "worst" else (point, reached)

    def _gradient(self, point: Tensor, step: int) -> tuple[Tensor, View]:
        """(gradient of the aim at ``point``, what was seen there)."""
        point = point.detach().requires_grad_(True)
        seen = self.sight(self.model, point, self.ctx)
        value = value_of(self.attack.aim, seen, self.target)
        # the sum, so that an image's gradient does not depend on how many others there are
        (gradient,) = torch.autograd.grad(value.sum(), point)
        peak = _check_gradient(gradient, self.attack.aim, step)
        if self.watch is not None:
            self.watch(step, value.detach(), peak)
        return gradient, seen


def check_images(images: Tensor, labels: Tensor) -> None:
    """Refuse images and labels that no attack can be measured on.

    Raises:
        OptionError: no images, values that are no numbers or outside [0, 1], or another number of labels.
    """
    if images.dim() != 4 or not images.is_floating_point() or len(images) == 0:
        raise OptionError(
            f"Images must be floating point numbers [B, C, H, W], at least one; found {images.dtype} "
            f"{tuple(images.shape)}."
        )
    least, most = (float(bound) for bound in images.detach().aminmax())
    if not (least >= 0 and most <= 1):  # NaN is neither
        raise OptionError(
            f"Images must be in [0, 1], found {least:g} to {most:g}. Divide bytes by 255, and normalise in the model."
        )
    if labels.shape != images.shape[:1]:
        raise OptionError(f"There are {len(images)} images and labels {tuple(labels.shape)}: give one label each.")


def _check_target(attack: Attack, clean: View, labels: Tensor) -> None:
    if needs_router(attack.aim):
        check_routed(clean.routings)
    if clean.logits is not None and (int(labels.min()) < 0 or int(labels.max()) >= clean.logits.shape[1]):
        raise OptionError(
            f"Labels are {int(labels.min())} to {int(labels.max())}, and the model tells {clean.logits.shape[1]} "
            f"classes apart: 0 to {clean.logits.shape[1] - 1}. Give the data it was trained for."
        )


def _check_gradient(gradient: Tensor, aim: Aim, step: int) -> Tensor:
    """[B]: the largest absolute gradient of each image."""
    peak = gradient.abs().flatten(1).amax(1)
    if not bool(torch.isfinite(peak).all()):
        bad = int((~torch.isfinite(peak)).sum())
        raise AttackError(
            f"The gradient of {aim!r} is not a finite number at step {step} for {bad} of {len(peak)} images: the sign "
            "of such a gradient is 0, so the attack would stand still and the model look robust. Look for NaN or huge "
            "values in its weights, or train it anew with a lower rate."
        )
    if float(peak.max()) == 0:
        hint = "Try the aim 'margin', which does not saturate." if aim in ("ce", "kl") else "Is the model's input used?"
        raise NoGradientError(
            f"The gradient of {aim!r} is zero for all {len(peak)} images at step {step}: the attack would stand still "
            f"and the model look robust. {hint}"
        )
    return peak


def worse_of(kept: Tensor, rank: Tensor, point: Tensor, reached: Tensor) -> tuple[Tensor, Tensor]:
    """(points [B, C, H, W], ranks [B]): of each image what was kept, or the point where it ranks higher."""
    worse = reached > rank
    return torch.where(worse[:, None, None, None], point, kept), torch.maximum(rank, reached)
