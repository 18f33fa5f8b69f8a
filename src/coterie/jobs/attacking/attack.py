"""How well a classifier of images bears attacks: the attacks, taken apart, and the checks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from coterie.errors import OptionError
from coterie.jobs.attacking.campaign import forced, run_all
from coterie.jobs.attacking.doubts import doubts
from coterie.jobs.attacking.outcome import survivors
from coterie.jobs.attacking.report import AttackReport
from coterie.jobs.attacking.tables import class_rows, expert_rows
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.attacking.trials import require_finite_answers, require_finite_weights, tried
from coterie.jobs.attacking.victim import Victim
from coterie.jobs.attacking.ways import Scene, Way, ways_for
from coterie.jobs.attacking.words import about, learned_from, notes_on, seen_before
from coterie.models.vision import VisionModel, load_vision
from coterie.training.adversarial import held_still
from coterie.training.images import ImageData, check_fit, read_images, shuffled

__all__ = ["attack"]

Say = Callable[[str], None]


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
    others: list[Way] = []
    if art:
        from coterie.jobs.attacking.art import art_ways

        others = art_ways(victim, threat, len(images.classes))
    with held_still(opened):
        scene = _scene(victim, taken)
        routers = 0 if scene.clean.routes is None else scene.clean.routes.shape[1]
        ways = ways_for(victim, threat, routers, released=released)
        report = _report(scene, taken, [*ways, *others], threat, say)
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


def _report(scene: Scene, data: ImageData, ways: list[Way], threat: Threat, say: Say) -> AttackReport:
    """All of it but the names."""
    victim, routes = scene.victim, scene.clean.routes
    campaign = run_all(scene, ways, say)
    outcomes = campaign.outcomes
    trials = tried(scene, threat, ~survivors(campaign.first_starts), say)
    robust, right, sites = survivors(outcomes), outcomes[0].correct, victim.columns(routes)
    experts = [] if routes is None or campaign.rerouted is None else expert_rows(
        routes, campaign.rerouted, sites, victim.experts, right, robust, forced(scene, outcomes)
    )  # fmt: skip
    return AttackReport(
        "", "", data.source, threat, len(data), victim.experts, sites, outcomes,
        doubts(scene, campaign, trials, threat),
        class_rows(scene.labels, data.classes, right, robust, routes, victim.experts), experts,
        campaign.steps_curve, trials.epsilon_curve, trials.checked, campaign.gallery.examples(scene, data.classes),
        notes_on(victim, outcomes),
    )  # fmt: skip
