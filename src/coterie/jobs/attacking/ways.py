"""The attacks of a report, each a row: what is attacked, what is held still, and what it may be used for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from coterie.errors import NoGradientError
from coterie.jobs.attacking.outcome import Answers, Kind, Outcome, share
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.attacking.victim import Plan, Victim
from coterie.training.adversarial import Aim, Attack, RandomSearch, perturb, reroute, search

__all__ = ["QUERIES", "STARTS", "Scene", "Way", "outcome_of", "run_way", "ways_for"]

QUERIES, STARTS = 200, 4  # of the attack without gradients; of the attack on what still stands
Change = Callable[[Tensor, Tensor, Tensor, "Record"], Tensor]  # (images, labels, numbers of the images) -> attacked


@dataclass(frozen=True, eq=False)
class Way:
    """One attack: how it is called, what it is, and how to perturb a batch and with what routes to judge it.

    Attributes:
        key, label, what, kind: as in `Outcome`.
        change: perturbs a batch.
        judge: the routes under which "right" is judged, from the clean batch; None is the model's own choice.
        standing: attack only what still stands, and count what fell before as wrong.
        passes: forwards and backwards that an image costs, for the estimate of time.
    """

    key: str
    label: str
    what: str
    kind: Kind
    change: Change
    judge: Plan | None = None
    standing: bool = False
    passes: int = 1


@dataclass(eq=False)
class Record:
    """What is seen while one way runs: losses over steps, of the images that are right when clean.

    The others have lost already, and their loss grows where that of the right ones has no slope.
    """

    loss: dict[int, list[Tensor]] = field(default_factory=dict)
    right: Tensor | None = None  # [B] bool, of the batch at hand

    def watch(self, step: int, value: Tensor, peak: Tensor) -> None:
        """Called by `perturb` before each step."""
        self.loss.setdefault(step, []).append(value.cpu() if self.right is None else value.cpu()[self.right])

    def curve(self) -> list[tuple[int, float]]:
        """(steps, mean over images); nothing of steps that saw none of them."""
        means = ((step, torch.cat(values)) for step, values in sorted(self.loss.items()))
        return [(step, float(losses.mean())) for step, losses in means if len(losses)]


@dataclass(frozen=True, eq=False)
class Scene:
    """The images in memory, [N, C, H, W] and [N], and what the model says to them unattacked."""

    victim: Victim
    images: Tensor
    labels: Tensor
    clean: Answers


def ways_for(victim: Victim, threat: Threat, routers: int, *, released: bool = False) -> list[Way]:
    """The attacks that make sense for this model, of which ``routers`` decide; those on all of it first."""
    steps = threat.steps * threat.restarts + 1
    ways = [
        Way("end-to-end", "end to end", "on the loss of the whole model", Kind.ATTACK,
            _gradient(victim, threat, "ce"), passes=steps),
        Way("margin", "margin", "on the lead of the right class, which does not saturate", Kind.ATTACK,
            _gradient(victim, threat, "margin"), passes=steps),
        Way("more-starts", f"{STARTS} more starts", "on the margin of what stands after both", Kind.ATTACK,
            _gradient(victim, replace(threat, restarts=STARTS, seed=threat.seed + 1), "margin"), standing=True,
            passes=STARTS * threat.steps // 2),
    ]  # fmt: skip
    if victim.experts > 1:
        ways += _of_routes(victim, threat, steps, routers)
    ways.append(
        Way("gradient-free", "without gradient", f"{QUERIES} random squares per image", Kind.ATTACK,
            _searching(victim, threat), passes=QUERIES // 2)
    )  # fmt: skip
    if released and victim.experts > 1:
        ways.append(
            Way("released", "released evaluation", "weakened by its term on the router: for comparison alone",
                Kind.WEAK, _gradient(victim, threat, "released"), passes=steps)
        )  # fmt: skip
    return ways


def _of_routes(victim: Victim, threat: Threat, steps: int, routers: int) -> list[Way]:
    ways = [
        Way("router", "router alone", "pushes the image off its expert", Kind.ATTACK,
            _gradient(victim, threat, "router"), passes=steps),
        Way("experts", "experts alone", "route frozen: a diagnostic, the attacker owns the route", Kind.DIAGNOSTIC,
            _gradient(victim, threat, "ce", victim.frozen), victim.frozen, passes=steps),
    ]  # fmt: skip
    if routers == 1:
        ways.insert(
            1, Way("rerouting", "rerouting", "to another expert that errs, both at once", Kind.ATTACK,
                   _rerouting(victim, threat), passes=(victim.experts - 1) * steps * 3 // 2)
        )  # fmt: skip
    for expert in range(victim.experts):
        plan = victim.forced(expert)
        ways.append(
            Way(f"expert-{expert}", f"expert {expert} forced", "each image through this expert", Kind.DIAGNOSTIC,
                _gradient(victim, threat, "ce", plan), plan, passes=steps)
        )  # fmt: skip
    return ways


def run_way(
    way: Way, scene: Scene, standing: Tensor, say: Callable[[int], None]
) -> tuple[Outcome, Tensor, Answers, Record]:
    """Attack the images: the outcome, the attacked images [N, C, H, W], what the free model says to them.

    ``standing [N]`` are those that no attack has broken yet. ``say`` is told how many images are done. Raises as
    `coterie.training.adversarial.perturb`.
    """
    victim, record = scene.victim, Record()
    found, right = scene.images.clone(), standing.clone()
    numbers = standing.nonzero().flatten() if way.standing else torch.arange(len(scene.labels))
    for part in numbers.split(victim.batch) if len(numbers) else ():
        images, labels = scene.images[part].to(victim.device), scene.labels[part].to(victim.device)
        record.right = scene.clean.predicted[part] == scene.labels[part]
        attacked = way.change(images, labels, part, record)
        found[part] = attacked.cpu()
        logits, _ = victim.see(attacked, None if way.judge is None else way.judge(images))
        right[part] = logits.argmax(-1) == scene.labels[part]
        say(int(part[-1]) + 1)
    answers = victim.answers(found, scene.labels)
    return outcome_of(way, scene, right, found, answers), found, answers, record


def outcome_of(way: Way, scene: Scene, correct: Tensor, found: Tensor, answers: Answers) -> Outcome:
    """A row: ``correct [N]`` as the way judges, ``answers`` of the model as it is to the images that were found."""
    kept = None
    if answers.routes is not None and scene.clean.routes is not None:
        kept = (answers.routes == scene.clean.routes).all(1)
    router = None
    if way.key == "released" and answers.routes is not None:
        router = share(answers.routes[:, 0] == scene.labels % scene.victim.experts)
    broken = ~correct if way.standing else answers.predicted != scene.labels
    return Outcome(
        way.key, way.label, way.what, way.kind, correct, broken, kept,
        float((found - scene.images).abs().max()), float(found.min()), float(found.max()), router,
    )  # fmt: skip


def _gradient(victim: Victim, threat: Threat, aim: Aim, plan: Plan | None = None) -> Change:
    attack = Attack(
        threat.epsilon, threat.steps, threat.step, start="uniform", restarts=threat.restarts, aim=aim, keep="worst"
    )

    def change(images: Tensor, labels: Tensor, numbers: Tensor, record: Record) -> Tensor:
        ctx = None if plan is None else plan(images)
        try:
            return perturb(
                victim.model, images, labels, attack, seed=threat.seed, index=numbers, ctx=ctx, watch=record.watch
            )
        except NoGradientError:  # a finding, not an end: other attacks may see what this one does not
            return images

    return change


def _rerouting(victim: Victim, threat: Threat) -> Change:
    attack = Attack(threat.epsilon, threat.steps, threat.step, restarts=threat.restarts)

    def change(images: Tensor, labels: Tensor, numbers: Tensor, record: Record) -> Tensor:
        return reroute(victim.model, images, labels, attack, seed=threat.seed, index=numbers)

    return change


def _searching(victim: Victim, threat: Threat) -> Change:
    attack = RandomSearch(threat.epsilon, QUERIES)

    def change(images: Tensor, labels: Tensor, numbers: Tensor, record: Record) -> Tensor:
        return search(victim.model, images, labels, attack, seed=threat.seed, index=numbers)

    return change
