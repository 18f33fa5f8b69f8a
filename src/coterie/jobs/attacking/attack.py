"""How well a classifier of images bears attacks: the attacks, taken apart, and the checks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from coterie.errors import OptionError
from coterie.jobs.attacking import checks
from coterie.jobs.attacking.checks import Check
from coterie.jobs.attacking.examples import Gallery
from coterie.jobs.attacking.outcome import Answers, Kind, Outcome, share, survivors
from coterie.jobs.attacking.report import AttackReport
from coterie.jobs.attacking.tables import class_rows, expert_rows
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.attacking.trials import Trials, require_finite_answers, require_finite_weights, steps_points, tried
from coterie.jobs.attacking.victim import Victim
from coterie.jobs.attacking.ways import QUERIES, STARTS, Scene, Way, run_way, ways_for
from coterie.jobs.attacking.words import about, learned_from, notes_on, seen_before
from coterie.models.vision import VisionModel, load_vision
from coterie.training.adversarial import held_still
from coterie.training.images import ImageData, check_fit, read_images, shuffled

__all__ = ["attack"]

Say = Callable[[str], None]
_WHOLE = ("clean", "end-to-end", "margin")  # with the first starts of the gradient attacks on the whole model


def attack(
    model: str | Path | nn.Module,
    data: str | Path | ImageData,
    threat: Threat | None = None,
    *,
    art: bool = False,
    released: bool = False,
    size: int | None = None,
    device: str = "auto",
    name: str | None = None,
    say: Say = lambda text: None,
) -> AttackReport:
    """Attack ``model`` on ``data`` end to end, by its router, by its experts, by every route; then doubt the result.

    The model's weights, statistics and modes are as before afterwards. Blocks. Not thread-safe.

    Args:
        model: a directory that `coterie.models.vision.save_vision` wrote, a `VisionModel`, or any module from images
            [B, C, H, W] in [0, 1] to logits, which then has no routes to look at.
        data: of `coterie.training.images.read_images`, or what it returns. Held out, or the numbers flatter.
        threat: what the attacker may do; default 8/255, 50 steps, 500 images.
        art: attack with the Adversarial Robustness Toolbox too: its projected gradient and AutoAttack.
        released: also the evaluation of AdvMoE's published code, which its own loss weakens.
        size: to which pictures in files are resized.
        device: of a model that is read; "auto" is the accelerator where there is one. A module stays where it is.
        name: of the model in what is shown; default as it was asked for.
        say: told what is being done.

    Raises:
        CheckpointError: no checkpoint of a vision model, damaged, or with NaN in it.
        OptionError: data that cannot be read or that the model was not made for.
        AttackError: the model answers with NaN, or its gradient is NaN: no number is returned.
        MissingExtraError: ``art`` without the toolbox, or images that need Pillow or scikit-learn without them.
    """
    began, threat = time.monotonic(), threat or Threat()
    shown = name or (type(model).__name__ if isinstance(model, nn.Module) else str(model))
    say("Opening")
    where = _device(device)
    opened = model if isinstance(model, nn.Module) else load_vision(model).to(where)
    images = data if isinstance(data, ImageData) else read_images(data, size=size)
    if isinstance(opened, VisionModel):
        spec = opened.spec
        check_fit(images, classes=spec.classes, channels=spec.channels, size=spec.image_size, what=shown)
    taken = images.select(shuffled(len(images), threat.seed, "attack")[: threat.images].sort().values)
    victim = Victim(opened, min(threat.batch, len(taken)))
    ways = ways_for(victim, threat, released=released)
    if art:
        from coterie.jobs.attacking.art import art_ways

        ways += art_ways(victim, threat, len(images.classes))
    with held_still(opened):
        work = _Work(_scene(victim, taken), threat, Gallery(), say)
        report = work.report(ways, taken)
    learned = "" if isinstance(model, nn.Module) else learned_from(model)
    return replace(
        report, model=shown, about=about(opened), available=len(images), seconds=time.monotonic() - began,
        notes=[*seen_before(learned, images.source), *report.notes],
    )  # fmt: skip


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OptionError(f"There is no device {name!r} here. Write cpu, or leave it out.") from error


def _scene(victim: Victim, data: ImageData) -> Scene:
    require_finite_weights(victim.model)
    pixels, labels = data.batch(torch.arange(len(data)))
    clean = victim.answers(pixels, labels)
    require_finite_answers(clean.loss)
    return Scene(victim, pixels, labels, clean)


@dataclass(eq=False)
class _Work:
    scene: Scene
    threat: Threat
    gallery: Gallery
    say: Say

    def report(self, ways: list[Way], data: ImageData) -> AttackReport:
        scene, victim = self.scene, self.scene.victim
        outcomes, first, points = [_clean(scene)], scene.clean, []
        pace = _Pace(self.say, sum(way.passes for way in ways) * len(scene.labels))
        for way in ways:
            standing = survivors([one for one in outcomes if one.key in _WHOLE])
            outcome, found, answers, record = run_way(way, scene, standing, partial(pace.tell, way))
            pace.finished(way, len(scene.labels))
            outcomes.append(outcome)
            self.gallery.look(way, scene, found, answers)
            if way.key == "end-to-end":
                first, points = answers, steps_points(scene, record)
        outcomes = _in_turn(outcomes)
        trials = tried(scene, self.threat, ~survivors([one for one in outcomes if one.key in _WHOLE]), self.say)
        robust, right = survivors(outcomes), outcomes[0].correct
        routes, sites = scene.clean.routes, victim.columns(scene.clean.routes)
        return AttackReport(
            "", "", data.source, self.threat, len(data), victim.experts, sites, outcomes,
            _doubts(scene, outcomes, trials, points, self.threat),
            class_rows(scene.labels, data.classes, right, robust, routes, victim.experts),
            [] if routes is None or first.routes is None else
            expert_rows(routes, first.routes, sites, victim.experts, right, robust, _forced(scene, outcomes)),
            points, trials.epsilon_curve, trials.checked, self.gallery.examples(scene, data.classes),
            notes_on(victim, outcomes),
        )  # fmt: skip


def _forced(scene: Scene, outcomes: list[Outcome]) -> dict[int, tuple[float, float]]:
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


def _doubts(
    scene: Scene, outcomes: list[Outcome], trials: Trials, points: list[tuple[int, float]], threat: Threat
) -> list[Check]:
    """All checks: those that had runs of their own, and those that follow from the attacks."""
    attacked, count = outcomes[1:], len(scene.labels)
    free = next(one for one in attacked if one.key == "gradient-free")
    own = [one for one in outcomes if not one.key.startswith("art-")]
    by_gradient = survivors([one for one in own if one is not free])
    bounds = (max(one.distance for one in attacked), threat.epsilon, min(one.low for one in attacked),
              max(one.high for one in attacked))  # fmt: skip
    extra = int((free.broken & by_gradient).sum())
    made = [
        *trials.checks, checks.in_ball(*bounds), checks.loss_rises(points), _restarts(outcomes, threat),
        checks.search_finds_no_more(extra, count, QUERIES),
    ]  # fmt: skip
    if len(own) < len(outcomes):
        made.append(checks.toolbox_finds_no_more(int((survivors(own) & ~survivors(outcomes)).sum()), count))
    bound = next((one for one in attacked if one.kind is Kind.BOUND), None)
    if bound is not None and scene.clean.routes is not None and scene.clean.routes.shape[1] == 1:
        lost = ~survivors(outcomes)
        made.append(checks.routes_bound(int((bound.correct & lost).sum()), count))
    return [*made, checks.load(*_load(scene.victim, scene.clean))]


def _restarts(outcomes: list[Outcome], threat: Threat) -> Check:
    before = survivors([one for one in outcomes if one.key in _WHOLE])
    after = next(one.correct for one in outcomes if one.key == "more-starts")
    return checks.restarts_help_little(int(before.sum()), int(after.sum()), len(before), threat.restarts, STARTS)


def _load(victim: Victim, clean: Answers) -> tuple[list[float], str]:
    """Shares of clean images per expert where they are least even, and the name of that site; [] of a dense model."""
    if clean.routes is None:
        return [], ""
    counts = [torch.bincount(column, minlength=victim.experts).double() / len(column) for column in clean.routes.T]
    worst = max(range(len(counts)), key=lambda place: float(counts[place].max()))
    return counts[worst].tolist(), victim.columns(clean.routes)[worst]


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
