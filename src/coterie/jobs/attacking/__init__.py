"""How well a classifier of images bears attacks: many of them, taken apart, and checks of what is found."""

from coterie.jobs.attacking.attack import attack
from coterie.jobs.attacking.checks import Check, Verdict
from coterie.jobs.attacking.outcome import Kind, Outcome
from coterie.jobs.attacking.report import AttackReport
from coterie.jobs.attacking.threat import Threat, parse_fraction

__all__ = ["AttackReport", "Check", "Kind", "Outcome", "Threat", "Verdict", "attack", "parse_fraction"]
