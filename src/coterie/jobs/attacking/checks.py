"""Checks that a robust accuracy means something. A model that hides its gradient, or holds NaN, looks robust.

Each function judges numbers that were measured elsewhere, so that each can be tried with numbers that must fail it.
The rules follow the literature on false robustness (Athalye et al. 2018, arXiv 1802.00420; Carlini et al. 2019,
arXiv 1902.06705) and AutoAttack's own warnings (Croce and Hein 2020, arXiv 2003.01690).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from typing import Any

__all__ = ["Check", "Verdict"]

# of a ball in float32: x + e - x is not e to the last bit
_SLACK = 1e-6
# a loss may fall by so much between few and many steps and still count as having risen: signs of gradients overshoot
_OVERSHOOT = 0.05
# robust accuracy that more starts may take: a warning above the first, a failure above the second
_RESTARTS, _RESTARTS_MOST = 0.02, 0.05
# images without gradient, and images that only an attack without gradients breaks: shares that are allowed
_NO_GRADIENT, _WITHOUT = 0.01, 0.002
# images that only the toolbox breaks, or that the free model loses and no expert does: some attack is too weak
_MISSED = 0.02
# a chance below which a count is no accident
_ACCIDENT = 0.05
# an expert with less than this share of a fair share is as good as unused
_UNUSED = 0.2


class Verdict(StrEnum):
    """How a check ended. A failure means that the robust accuracy is not to be trusted."""

    PASSED = "passed"
    FAILED = "failed"
    WARNING = "warning"
    SKIPPED = "not applicable"


@dataclass(frozen=True)
class Check:
    """One check: what was found, and the numbers behind it."""

    name: str
    verdict: Verdict
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def as_record(self) -> dict[str, Any]:
        return {"check": self.name, "verdict": self.verdict.value, "text": self.text, "numbers": dict(self.numbers)}


def finite(loss: Sequence[float]) -> Check:
    """Every answer is a number. NaN hides as robustness: its sign is 0, and the attack stands still."""
    bad = sum(not math.isfinite(value) for value in loss)
    text = f"{bad} of {len(loss)} losses are no finite numbers" if bad else f"all {len(loss)} losses are finite"
    return _judged("no NaN", not bad, text, images=len(loss), not_finite=bad)


def repeatable(difference: float, routes: int, scale: float) -> Check:
    """The same images, twice, give the same answers. Chance in the model makes every attack look weak."""
    fine = difference <= 1e-5 * max(scale, 1.0) and routes == 0
    text = f"logits differ by {difference:.1e} between two passes over the same images"
    return _judged("repeatable", fine, text + _rerouted(routes), difference=difference, routes=routes)


def alone(difference: float, routes: int, scale: float) -> Check:
    """An image alone is answered as within its batch, or the batch decides and no attack on one image means much."""
    fine = difference <= 1e-4 * max(scale, 1.0) and routes == 0
    text = f"logits of an image alone and in a batch differ by {difference:.1e} (largest logit {scale:.3g})"
    return _judged("independent of batch", fine, text + _rerouted(routes), difference=difference, routes=routes)


def in_ball(distance: float, epsilon: float, low: float, high: float) -> Check:
    """The attack kept to the rules."""
    fine = distance <= epsilon + _SLACK and low >= 0 and high <= 1
    text = f"largest change {distance:.4g} of {epsilon:.4g}, pixels from {low:.3g} to {high:.3g}"
    return _judged("within the ball", fine, text, distance=distance, epsilon=epsilon, low=low, high=high)


def gradients(without: int, images: int) -> Check:
    """Images that the model's loss has a gradient for: where it is zero, the attack makes no step."""
    if not images:
        return _skipped("gradients", "no image is answered right")
    fine = without <= _NO_GRADIENT * images
    text = f"{without} of {images} images that are answered right have a gradient of exactly zero"
    text += "" if fine else ": its logits saturate, or a step of it has no slope"
    return _judged("gradients", fine, text, without=without, images=images)


def loss_rises(points: Sequence[tuple[int, float]]) -> Check:
    """More steps, more loss. ``points`` are (steps, mean loss), the first of 0 steps."""
    if not points:
        return _skipped("loss rises with steps", "no image is answered right")
    losses = [loss for _, loss in points]
    falls = [before - after for before, after in pairwise(losses)]
    spread = max(losses) - losses[0]
    fine = losses[-1] > losses[0] and max(falls, default=0) <= _OVERSHOOT * max(spread, 0.0)
    text = "mean loss " + ", ".join(f"{loss:.3g} after {steps}" for steps, loss in points) + " steps"
    text += "" if fine else "; try a smaller --step-size, else its gradients mislead"
    return _judged("loss rises with steps", fine, text, points=[list(point) for point in points])


def unbounded(left: int, images: int, epsilon: float) -> Check:
    """With every pixel free, an attack that works leaves nothing."""
    if not images:
        return _skipped("unbounded attack", "no image is answered right")
    text = f"at epsilon {epsilon:.3g}, {left} of {images} images that are answered right withstand"
    if left:
        text += ": the attack is blind, or the model answers without looking"
    return _judged("unbounded attack", left == 0, text, left=left, images=images, epsilon=epsilon)


def epsilon_matters(points: Sequence[tuple[float, float]], images: int) -> Check:
    """A larger ball holds the smaller one, so accuracy must not rise. ``points`` are (epsilon, accuracy)."""
    rises = [after - before for (_, before), (_, after) in pairwise(points)]
    allowed = 0.01 + 1 / max(images, 1)
    text = "accuracy " + ", ".join(f"{accuracy:.1%} at {epsilon:.3g}" for epsilon, accuracy in points)
    return _judged("larger is stronger", max(rises, default=0) <= allowed, text, points=[list(p) for p in points])


def restarts_help_little(before: int, after: int, images: int, starts: int, more: int) -> Check:
    """Other starts find little more, or the first were stuck. Counts are images that withstand."""
    if not before:
        return _skipped("restarts help little", "the first start breaks every image")
    gone, text = before - after, f"{before} of {images} images withstand {starts} start{'s' * (starts > 1)}, "
    text += f"{after} withstand {more} more"
    verdict = Verdict.PASSED
    if _too_many(gone, images, _RESTARTS):
        verdict = Verdict.FAILED if _too_many(gone, images, _RESTARTS_MOST) else Verdict.WARNING
        text += "; try more --steps and --restarts"
    return Check("restarts help little", verdict, text, {"before": before, "after": after, "images": images})


def search_finds_no_more(extra: int, after_all: int, images: int, queries: int) -> Check:
    """An attack that needs no gradient breaks nothing that gradients do not, or the gradients mislead.

    Of the ``extra`` images that it breaks alone, ``after_all`` fall to gradients that start from more places.
    """
    left = extra - after_all
    fine = not _too_many(left, images, _WITHOUT)
    text = f"{extra} of {images} images fall to {queries} random tries alone"
    text += f", {left} of them to no gradient from more starts" if extra else ""
    text += "" if fine else f" ({_points(left, images)}); try more --steps, else the gradients are masked"
    numbers = {"extra": extra, "left": left, "images": images, "queries": queries}
    return _judged("gradient-free finds no more", fine, text, **numbers)


def toolbox_finds_no_more(extra: int, images: int) -> Check:
    """The toolbox, with attacks written by others, breaks little that ours do not."""
    verdict = Verdict.WARNING if _too_many(extra, images, _MISSED) else Verdict.PASSED
    text = f"{extra} of {images} images fall to the toolbox alone ({_points(extra, images)})"
    return Check("ART finds no more", verdict, text, {"extra": extra, "images": images})


def routes_bound(missed: int, images: int) -> Check:
    """Forcing each expert in turn gives the attacker more than it has, so it must break what the free model loses."""
    fine = not _too_many(missed, images, _MISSED)
    text = f"{missed} of {images} images withstand each expert's own attack and fall with the router free"
    verdict = Verdict.PASSED if fine else Verdict.WARNING
    return Check("routes in turn bound it", verdict, text, {"missed": missed, "images": images})


def load(shares: Sequence[float], site: str = "") -> Check:
    """Several experts are used. One that has everything is a small dense network with a router in front."""
    if len(shares) < 2:
        return _skipped("experts used", "there is one expert" if shares else "the model is dense")
    busiest, idlest = max(shares), min(shares)
    where = f" at {site}" if site else ""
    text = "images per expert: " + ", ".join(f"{value:.0%}" for value in shares) + where
    numbers: dict[str, Any] = {"shares": list(shares), "site": site}
    if busiest == 1:
        text = f"collapsed: expert {_at(shares, 1.0)} has all images{where}, so that this is a small dense network"
        return Check("experts used", Verdict.WARNING, text, numbers)
    if idlest < _UNUSED / len(shares):
        return Check("experts used", Verdict.WARNING, f"expert {_at(shares, idlest)} is hardly used; {text}", numbers)
    return Check("experts used", Verdict.PASSED, text, numbers)


def _judged(name: str, fine: bool, text: str, **numbers: Any) -> Check:
    return Check(name, Verdict.PASSED if fine else Verdict.FAILED, text, numbers)


def _skipped(name: str, why: str) -> Check:
    return Check(name, Verdict.SKIPPED, why)


def _rerouted(routes: int) -> str:
    return f"; {routes} images change their route" if routes else ""


def _points(count: int, images: int) -> str:
    return f"{100 * count / max(images, 1):.1f} points"


def _at(shares: Sequence[float], value: float) -> int:
    return list(shares).index(value)


def _too_many(count: int, images: int, allowed: float) -> bool:
    """Whether ``count`` of ``images`` is more than a share of ``allowed`` would bring about by accident."""
    if count <= allowed * images:
        return False
    fewer = math.fsum(math.exp(_log_chance(k, images, allowed)) for k in range(count))
    return 1 - fewer < _ACCIDENT


def _log_chance(k: int, n: int, p: float) -> float:
    """Of exactly ``k`` in ``n``, each by itself with chance ``p``."""
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return ways + k * math.log(p) + (n - k) * math.log1p(-p)
