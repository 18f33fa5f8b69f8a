"""An attack on hard routing: lead the image to another expert, and that expert into a mistake, both at once.

The gradient of a hard choice does not tell what another choice would have answered: ascent on the whole model's loss
sees the expert that is taken, ascent on the router sees no answer. So for every other expert in turn

    lead(x')   = s_e(x') - max of the other s        that the router takes expert e        (above 0: taken)
    margin(x') = max of the other f_e - f_e[y]       that expert e errs                    (above 0: it does)

are raised together, each gradient divided by its own mean size, until both are above 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from coterie.errors import AttackError, OptionError
from coterie.ops.draw import fold
from coterie.routers import fixed_plan
from coterie.routing import RouteContext
from coterie.training.adversarial.aims import wrong_by
from coterie.training.adversarial.attacks import Attack, check_images, worse_of
from coterie.training.adversarial.losses import logits_of
from coterie.training.adversarial.starts import ball, image_keys, started
from coterie.training.adversarial.view import check_routed, held_still, route_of, view, view_routers

__all__ = ["reroute"]

_SAFE = 0.1  # a part that is ahead by this share of its spread is left alone, the other goes on


def reroute(
    model: nn.Module, images: Tensor, labels: Tensor, attack: Attack, *, seed: int = 0, index: Tensor | None = None
) -> Tensor:
    """[B, C, H, W] float32: the images, changed by at most epsilon, led to another expert that errs if one is found.

    Of ``attack`` epsilon, steps, step size and restarts count; the start is uniform. Where no expert was led both ways
    the point that came nearest is given. Effects as of `coterie.training.adversarial.perturb`.

    Args:
        model: a `coterie.models.vision.VisionModel` with one router, on the image.
        images, labels, seed, index: as of `perturb`.

    Raises:
        OptionError: images outside [0, 1], or not exactly one router.
        AttackError: a gradient is no number.
    """
    check_images(images, labels)
    keys = image_keys("reroute", seed, images, index)
    with held_still(model), torch.enable_grad():
        with torch.no_grad():
            routings = check_routed(view_routers(model, images).routings)
        if len(routings) != 1:
            raise OptionError(
                f"{len(routings)} routers decide in this model; rerouting is for one router on the image."
            )
        before, experts = route_of(routings[0]), routings[0].num_experts
        kept, rank = images.clone(), images.new_full((len(images),), -torch.inf)
        for expert in range(experts):
            rows = (before != expert).nonzero().flatten()
            for restart in range(attack.restarts if len(rows) else 0):
                key: Tensor = fold(keys[rows], restart * experts + expert)  # type: ignore[assignment]
                found, reached = _Ascent(model, images[rows], labels[rows], expert, attack).climb(key)
                better = reached > rank[rows]
                kept[rows[better]], rank[rows[better]] = found[better], reached[better]
        return kept


class _Ascent:
    """From one start towards one expert."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, expert: int, attack: Attack) -> None:
        self.model, self.images, self.labels, self.attack = model, images, labels, attack
        self.expert = torch.full((len(images),), expert, device=images.device)
        sites, experts = tuple(model.sites), int(model.num_experts)  # type: ignore[arg-type]
        self.forced = RouteContext(plan=fixed_plan(self.expert, sites, experts))

    def climb(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """(points [B, C, H, W], rank [B]): the smaller of lead and margin, best on the way."""
        epsilon, images = self.attack.epsilon, self.images
        low, high = ball(images, epsilon)
        point = started(images, "uniform", epsilon, keys)
        best, rank = point, images.new_full((len(images),), -torch.inf)
        for _ in range(self.attack.steps + 1):
            direction, reached = self._look(point)
            best, rank = worse_of(best, rank, point, reached)
            point = torch.clamp(point + self.attack.step_size * direction.sign(), low, high)
        return best, rank

    def _look(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """(direction [B, C, H, W], the smaller of lead and margin [B]) at ``point``."""
        point = point.detach().requires_grad_(True)
        scores = logits_of(view_routers(self.model, point).routings[0])
        logits = view(self.model, point, self.forced).classes
        parts = [(-wrong_by(scores, self.expert), scores), (wrong_by(logits, self.labels), logits)]
        direction = torch.zeros_like(point)
        for value, table in parts:
            (gradient,) = torch.autograd.grad(value.sum(), point, retain_graph=True)
            direction += _even(gradient) * _open(value, table)[:, None, None, None]
        return direction, torch.minimum(*(_relative(value, table) for value, table in parts)).detach()


def _relative(value: Tensor, table: Tensor) -> Tensor:
    """[B]: over the spread of the logits, so that router and network are of one measure."""
    return value / (table.amax(1) - table.amin(1)).clamp_min(1e-12)


def _open(value: Tensor, table: Tensor) -> Tensor:
    """[B]: 1 where there is still something to gain, 0 where it is safely ahead."""
    return (_relative(value, table) < _SAFE).to(value.dtype).detach()


def _even(gradient: Tensor) -> Tensor:
    """Each image's gradient over its mean absolute value."""
    size = gradient.abs().flatten(1).mean(1)
    if not bool(torch.isfinite(size).all()):
        raise AttackError(
            "The gradient of router or network is not a finite number, so that the attack would stand still and the "
            "model look robust. Look for NaN or huge values in its weights."
        )
    return gradient / size.clamp_min(1e-30)[:, None, None, None]
