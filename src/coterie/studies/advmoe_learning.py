"""One arm of a study of AdvMoE: a network trained under attack, then attacked as `coterie attack` does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from coterie.jobs.attacking import AttackReport, Threat, Verdict, attack
from coterie.jobs.attacking.outcome import share, survivors
from coterie.models.vision import VisionModel, build_vision, vision_cost
from coterie.models.vision.saving import not_finite
from coterie.studies.advmoe_data import Setting, unpacked
from coterie.studies.claims import Metrics
from coterie.studies.study import Bench
from coterie.training.adversarial import RobustLosses, RobustOptions, fit_robust, training_attack
from coterie.training.adversarial.options import RouterNorm
from coterie.training.images import ImageData

EXPERTS = 2
_NAMES = {
    "experts": "route frozen", "router": "after router attack", "worst-route": "worst route", "released": "released",
}  # fmt: skip


def run(bench: Bench, setting: Setting) -> Metrics:
    """Train the arm's network, attack it."""
    learn, measure = unpacked(bench.corpus)
    model = _made(bench, setting)
    fit_robust(model, learn, _options(bench, setting), bench.place / "work", progress=bench.progress)
    report = attack(model, measure, threat=_threat(bench, setting, len(measure)), released=model.num_experts > 0)
    return _facts(model) | _measured(report) | _routing(model, measure, report)


def _made(bench: Bench, setting: Setting) -> VisionModel:
    options = bench.arm.options
    narrow = options["experts"] or options.get("narrow")
    spec = setting.experts(options["experts"], options.get("norm", "per_expert")) if narrow else setting.dense
    return build_vision(spec, seed=bench.seed, init=setting.init)


def _options(bench: Bench, setting: Setting) -> RobustOptions:
    options, regime = bench.arm.options, bench.arm.options["regime"]
    routed = options["experts"] > 0
    losses = RobustLosses(
        beta=setting.beta, drift=setting.drift if regime != "joint" else 0.0,
        balance=setting.balance if routed and regime != "released" else 0.0,
    )  # fmt: skip
    inner = training_attack(regime, epsilon=setting.epsilon, steps=setting.steps, step_size=setting.step_size)
    norms: RouterNorm = options.get("statistics", "batch")
    return RobustOptions(
        regime=regime, epochs=bench.scaled(setting.epochs, 1), batch=setting.batch, losses=losses, attack=inner,
        router=setting.router if routed else None, router_norm=norms, augment=setting.augment, save_every=1000,
        validate_every=1000, seed=bench.seed,
    )  # fmt: skip


def _threat(bench: Bench, setting: Setting, images: int) -> Threat:
    return Threat(
        epsilon=setting.epsilon, steps=bench.scaled(setting.measure_steps, 2), step_size=setting.measure_step_size,
        images=bench.scaled(images, 32), seed=0,
    )  # fmt: skip


def _facts(model: VisionModel) -> dict[str, Any]:
    cost = vision_cost(model.spec)
    broken = not_finite([*model.named_parameters(), *model.named_buffers()])
    return {"saving": cost.saving, "finite": float(not broken)}


def _measured(report: AttackReport) -> dict[str, Any]:
    """Accuracies as the spec of the study names them, and those of `coterie attack`."""
    found = {one.key: one for one in report.outcomes}
    decisive = [found[key] for key in ("end-to-end", "router") if key in found]
    metrics: dict[str, Any] = {
        "clean": report.clean_accuracy, "robust": share(survivors(decisive)),
        "robust, all attacks": report.robust_accuracy, "end to end": found["end-to-end"].accuracy,
        "doubts": [check.name for check in report.checks if check.verdict is Verdict.FAILED],
    }  # fmt: skip
    return metrics | {name: found[key].accuracy for key, name in _NAMES.items() if key in found}


def _routing(model: VisionModel, data: ImageData, report: AttackReport) -> dict[str, Any]:
    """Where clean images go, how many an attacker moves, and whether the route is the domain of the image."""
    if not model.num_experts:
        return {}
    flips: Mapping[str, float | None] = {one.key: one.flips for one in report.outcomes}
    loads = [row.share for row in report.expert_rows]
    routes = _routes(model, data)
    domain = torch.arange(len(data)) % EXPERTS
    same = float((routes == domain).double().mean())
    return {"least load": min(loads), "flips": flips["router"], "domain": max(same, 1 - same)}


@torch.no_grad()
def _routes(model: VisionModel, data: ImageData) -> torch.Tensor:
    images, _ = data.batch(torch.arange(len(data)))
    plan = model.decide(images)
    assert plan is not None
    return plan[model.sites[0]].expert
