"""What became of each image under one attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

__all__ = ["Answers", "Kind", "Outcome", "share", "standard_error", "survivors"]


class Kind(StrEnum):
    """What a row of the table may be used for."""

    CLEAN = "clean"
    ATTACK = "attack"  # the model as it is, on images within the ball: counts for the headline
    DIAGNOSTIC = "diagnostic"  # something was held still that an attacker would not hold still
    BOUND = "bound"  # an attacker that may choose the route as well: no real one does better
    WEAK = "weak"  # an attack that its own objective weakens, for comparison with published numbers


@dataclass(frozen=True, eq=False)
class Answers:
    """What the model says to N images.

    Attributes:
        predicted: [N] int64.
        loss: [N] float32, cross-entropy with the label.
        routes: [N, S] int64, the expert at each of S places that decide; None of a dense model.
    """

    predicted: Tensor
    loss: Tensor
    routes: Tensor | None


@dataclass(frozen=True, eq=False)
class Outcome:
    """One attack on N images, evaluated.

    Attributes:
        key, label, what: short name, name for people, one sentence.
        kind: what it may be used for.
        correct: [N] bool, as the attack defines it: under the frozen route where it was frozen, and so on.
        broken: [N] bool, the model as it is answers wrong on the attacked image. What the headline counts, whatever
            the kind: an image found under a frozen route may fool the free model too.
        kept: [N] bool, the route is the clean image's at every site; None of a dense model.
        distance: largest change of a pixel.
        low, high: of the attacked pixels.
        router: share of images whose route agreed with the label modulo experts, of the released attack alone.
    """

    key: str
    label: str
    what: str
    kind: Kind
    correct: Tensor
    broken: Tensor
    kept: Tensor | None = None
    distance: float = 0.0
    low: float = 0.0
    high: float = 1.0
    router: float | None = None

    @property
    def accuracy(self) -> float:
        """Share of images answered right, as the attack defines it."""
        return share(self.correct)

    @property
    def flips(self) -> float | None:
        """Share of images whose route is another than the clean image's."""
        return None if self.kept is None else 1 - share(self.kept)

    def as_record(self) -> dict[str, Any]:
        error = standard_error(self.accuracy, len(self.correct))
        return {
            "attack": self.key, "kind": self.kind.value, "accuracy": self.accuracy, "standard_error": error,
            "broken_end_to_end": share(self.broken), "flip_rate": self.flips, "largest_change": self.distance,
            **({} if self.router is None else {"router_accuracy_label_modulo_experts": self.router}),
        }  # fmt: skip


def share(flags: Tensor) -> float:
    """Of flags that are set; 0 without any flag."""
    return float(flags.double().mean()) if flags.numel() else 0.0


def standard_error(accuracy: float, images: int) -> float:
    """Of a share, from the number of images it was measured on."""
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / max(images, 1))


def survivors(outcomes: list[Outcome]) -> Tensor:
    """[N] bool: images that the model answers right under every one of ``outcomes``."""
    return ~torch.stack([outcome.broken for outcome in outcomes]).any(0)
