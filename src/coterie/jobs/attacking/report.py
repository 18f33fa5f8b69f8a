"""What `attack` found, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from coterie.jobs.attacking.checks import Check, Verdict
from coterie.jobs.attacking.outcome import Kind, Outcome, share, standard_error, survivors
from coterie.jobs.attacking.tables import ClassRow, ExpertRow
from coterie.jobs.attacking.threat import Threat
from coterie.jobs.output import write_output
from coterie.jobs.sheet import Sheet

__all__ = ["AttackReport", "Example"]


@dataclass(frozen=True, eq=False)
class Example:
    """One image before and after: ``clean`` and ``attacked [C, H, W]``, what was answered, and where it went.

    Routes are the experts at each site that decides, one where all sites share it, empty of a dense model.
    """

    label: str
    attack: str
    clean: Tensor
    attacked: Tensor
    before: str
    after: str
    route_before: Sequence[int]
    route_after: Sequence[int]


@dataclass(frozen=True, eq=False)
class AttackReport:
    """The result of `coterie.jobs.attack`.

    Attributes:
        model, about, data: as asked for, what it is, what was attacked.
        threat: what the attacker may do.
        available: images there are; `images` of them were attacked.
        experts, sites: of the model; 0 and () of a dense one. One site "" stands for all where they share a route.
        outcomes: clean first, then each attack.
        checks: what was looked at before the number may be believed.
        classes, expert_rows: the tables.
        steps_curve: (steps, mean loss) of the end-to-end attack on the images that are right when clean.
        epsilon_curve: (epsilon, accuracy) under the attack on the margin, on the first ``checked`` images.
        examples: for the page.
        notes: what one must know to read the numbers.
        seconds: that it took.
    """

    model: str
    about: str
    data: str
    threat: Threat
    available: int
    experts: int
    sites: Sequence[str]
    outcomes: Sequence[Outcome]
    checks: Sequence[Check]
    classes: Sequence[ClassRow]
    expert_rows: Sequence[ExpertRow]
    steps_curve: Sequence[tuple[int, float]] = ()
    epsilon_curve: Sequence[tuple[float, float]] = ()
    checked: int = 0
    examples: Sequence[Example] = field(default_factory=list)
    notes: Sequence[str] = ()
    seconds: float = 0.0

    @property
    def images(self) -> int:
        """How many were attacked."""
        return len(self.outcomes[0].correct)

    @property
    def clean_accuracy(self) -> float:
        """SA: share answered right without any attack."""
        return self.outcomes[0].accuracy

    @cached_property
    def robust_accuracy(self) -> float:
        """RA, the headline: share answered right under each of the attacks, the worst of every image."""
        return share(survivors(list(self.outcomes)))

    @property
    def standard_error(self) -> float:
        """Of `robust_accuracy`, from the number of images."""
        return standard_error(self.robust_accuracy, self.images)

    @property
    def trusted(self) -> bool:
        """No check failed."""
        return all(check.verdict is not Verdict.FAILED for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0, or 1 where the numbers are not to be trusted."""
        return 0 if self.trusted else 1

    def outcome(self, key: str) -> Outcome | None:
        """One attack by its short name; None where it was not run."""
        return next((one for one in self.outcomes if one.key == key), None)

    def count(self, verdict: Verdict) -> int:
        return sum(check.verdict is verdict for check in self.checks)

    def as_record(self) -> dict[str, Any]:
        """Everything but the pictures, ready for JSON."""
        return {
            "model": self.model, "about": self.about, "data": self.data, "threat": self.threat.as_record(),
            "images": self.images, "available": self.available, "experts": self.experts, "sites": list(self.sites),
            "clean_accuracy": self.clean_accuracy, "robust_accuracy": self.robust_accuracy,
            "standard_error": self.standard_error, "trusted": self.trusted,
            "attacks": [one.as_record() for one in self.outcomes if one.kind is not Kind.CLEAN],
            "checks": [one.as_record() for one in self.checks],
            "per_class": [row.as_record() for row in self.classes],
            "per_expert": [row.as_record() for row in self.expert_rows],
            "loss_over_steps": [list(point) for point in self.steps_curve],
            "accuracy_over_epsilon": [list(point) for point in self.epsilon_curve], "checked_images": self.checked,
            "notes": list(self.notes), "seconds": round(self.seconds, 2),
        }  # fmt: skip

    def sheet(self) -> Sheet:
        """For people."""
        from coterie.jobs.attacking.attack_sheet import sheet_of

        return sheet_of(self)

    def describe(self) -> str:
        """`sheet` as plain text."""
        return self.sheet().plain()

    def html(self) -> str:
        """A page with tables, curves and pictures: one file, no scripts, no network, light and dark."""
        from coterie.jobs.attacking.attack_page import page

        return page(self)

    def write_html(self, path: str | Path) -> None:
        """Write `html` to ``path``, in one step.

        Raises:
            OptionError: the file cannot be written.
        """
        write_output(path, self.html())
