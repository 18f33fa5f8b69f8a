"""The checks of a report: those that had runs of their own, and those that follow from the attacks."""

from __future__ import annotations

import torch

from coterie.jobs.attacking import checks
from coterie.jobs.attacking.campaign import Campaign
from coterie.jobs.attacking.checks import Check
from coterie.jobs.attacking.outcome import Answers, Kind, Outcome, survivors
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.attacking.trials import Trials, second_look
from coterie.jobs.attacking.victim import Victim
from coterie.jobs.attacking.ways import QUERIES, STARTS, Scene

__all__ = ["doubts"]


def doubts(scene: Scene, campaign: Campaign, trials: Trials, threat: Threat) -> list[Check]:
    """All of them, the most basic first."""
    return [
        *trials.checks, _in_ball(campaign.outcomes[1:], threat), checks.loss_rises(campaign.steps_curve),
        _restarts(campaign, threat), *_by_others(scene, campaign.outcomes, threat), *_bound(scene, campaign.outcomes),
        checks.load(*_load(scene.victim, scene.clean)),
    ]  # fmt: skip


def _in_ball(attacked: list[Outcome], threat: Threat) -> Check:
    low, high = min(one.low for one in attacked), max(one.high for one in attacked)
    return checks.in_ball(max(one.distance for one in attacked), threat.epsilon, low, high)


def _by_others(scene: Scene, outcomes: list[Outcome], threat: Threat) -> list[Check]:
    """What falls to a search alone, and to the toolbox alone."""
    count = len(outcomes[0].correct)
    own = [one for one in outcomes if not one.key.startswith("art-")]
    free = next(one for one in own if one.key == "gradient-free")
    by_gradient = survivors([one for one in own if one is not free])
    extra = (free.broken & by_gradient).nonzero().flatten()
    made = [checks.search_finds_no_more(len(extra), second_look(scene, threat, extra), count, QUERIES)]
    if len(own) < len(outcomes):
        made.append(checks.toolbox_finds_no_more(int((survivors(own) & ~survivors(outcomes)).sum()), count))
    return made


def _bound(scene: Scene, outcomes: list[Outcome]) -> list[Check]:
    bound = next((one for one in outcomes if one.kind is Kind.BOUND), None)
    if bound is None or scene.clean.routes is None or scene.clean.routes.shape[1] > 1:
        return []
    return [checks.routes_bound(int((bound.correct & ~survivors(outcomes)).sum()), len(scene.labels))]


def _restarts(campaign: Campaign, threat: Threat) -> Check:
    before = survivors(campaign.first_starts)
    after = next(one.correct for one in campaign.outcomes if one.key == "more-starts")
    return checks.restarts_help_little(int(before.sum()), int(after.sum()), len(before), threat.restarts, STARTS)


def _load(victim: Victim, clean: Answers) -> tuple[list[float], str]:
    """Shares of clean images per expert where they are least even, and the name of that site; [] of a dense model."""
    if clean.routes is None:
        return [], ""
    counts = [torch.bincount(column, minlength=victim.experts).double() / len(column) for column in clean.routes.T]
    worst = max(range(len(counts)), key=lambda place: float(counts[place].max()))
    return counts[worst].tolist(), victim.columns(clean.routes)[worst]
