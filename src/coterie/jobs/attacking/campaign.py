"""All attacks of a report, one after the other, and the rows that follow from several of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from coterie.jobs.attacking.examples import Gallery
from coterie.jobs.attacking.outcome import Kind, Outcome, share, survivors
from coterie.jobs.attacking.trials import steps_points
from coterie.jobs.attacking.ways import Scene, Way, run_way

__all__ = ["Campaign", "forced", "run_all"]

_WHOLE = ("clean", "end-to-end", "margin")  # the first starts of the gradient attacks on the whole model
Say = Callable[[str], None]


@dataclass(eq=False)
class Campaign:
    """What the attacks found.

    Attributes:
        outcomes: clean first, then in the order they ran; every route in turn after the single experts.
        rerouted: [N, S] routes of the images that the end-to-end attack made; None of a dense model.
        steps_curve: (steps, mean loss) of that attack.
        gallery: of images that were broken.
    """

    outcomes: list[Outcome]
    rerouted: Tensor | None = None
    steps_curve: list[tuple[int, float]] = field(default_factory=list)
    gallery: Gallery = field(default_factory=Gallery)

    @property
    def first_starts(self) -> list[Outcome]:
        """Clean, and the gradient attacks on the whole model from their first starts."""
        return [one for one in self.outcomes if one.key in _WHOLE]


def run_all(scene: Scene, ways: list[Way], say: Say) -> Campaign:
    """Run ``ways`` in order; ``say`` is told how far they are. Raises as `coterie.training.adversarial.perturb`."""
    campaign, pace = Campaign([_clean(scene)]), _Pace(say, sum(way.passes for way in ways) * len(scene.labels))
    for way in ways:
        standing = survivors(campaign.first_starts)
        outcome, found, answers, record = run_way(way, scene, standing, partial(pace.tell, way))
        pace.finished(way, len(scene.labels))
        campaign.outcomes.append(outcome)
        campaign.gallery.look(way, scene, found, answers)
        if way.key == "end-to-end":
            campaign.rerouted, campaign.steps_curve = answers.routes, steps_points(scene, record)
    campaign.outcomes = _in_turn(campaign.outcomes)
    return campaign


def forced(scene: Scene, outcomes: list[Outcome]) -> dict[int, tuple[float, float]]:
    """Expert -> accuracy with all images forced through it, clean and attacked so."""
    found = {}
    for outcome in outcomes:
        if outcome.key.startswith("expert-"):
            expert = int(outcome.key.removeprefix("expert-"))
            said = scene.victim.answers(scene.images, scene.labels, scene.victim.forced(expert))
            found[expert] = share(said.predicted == scene.labels), outcome.accuracy
    return found


def _clean(scene: Scene) -> Outcome:
    correct = scene.clean.predicted == scene.labels
    kept = None if scene.clean.routes is None else torch.ones_like(correct)
    low, high = float(scene.images.min()), float(scene.images.max())
    return Outcome("clean", "clean", "no attack", Kind.CLEAN, correct, ~correct, kept, 0.0, low, high)


def _in_turn(outcomes: list[Outcome]) -> list[Outcome]:
    """With the row that takes the attacks on single experts together, after them."""
    each = [one for one in outcomes if one.key.startswith("expert-")]
    if not each:
        return outcomes
    kept = [one.kept for one in each if one.kept is not None]
    together = Outcome(
        "worst-route", "every route in turn", "right under each expert's own attack: a bound", Kind.BOUND,
        torch.stack([one.correct for one in each]).all(0), torch.stack([one.broken for one in each]).any(0),
        torch.stack(kept).all(0) if kept else None, max(one.distance for one in each),
        min(one.low for one in each), max(one.high for one in each),
    )  # fmt: skip
    last = outcomes.index(each[-1]) + 1
    return [*outcomes[:last], together, *outcomes[last:]]


@dataclass(eq=False)
class _Pace:
    """Says how far the attacks are, and how long they will take."""

    say: Say
    total: int
    behind: int = 0
    began: float = field(default_factory=time.monotonic)

    def tell(self, way: Way, done: int) -> None:
        passed = self.behind + done * way.passes
        left = (time.monotonic() - self.began) / passed * (self.total - passed)
        self.say(f"Attacking, {way.label}: {done:,} images, about {left:.0f} s left for all attacks")

    def finished(self, way: Way, images: int) -> None:
        self.behind += images * way.passes
