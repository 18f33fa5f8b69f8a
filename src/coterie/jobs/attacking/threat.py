"""What the attacker may do, and how hard we try."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from coterie.errors import OptionError
from coterie.training.adversarial.attacks import check_epsilon
from coterie.training.words import fraction, in_255ths

__all__ = ["Threat", "parse_fraction"]


@dataclass(frozen=True)
class Threat:
    """Changes of up to ``epsilon`` of every pixel (the L-infinity ball), found by projected gradient ascent.

    Attributes:
        epsilon: radius of the ball; pixels are in [0, 1].
        steps: of each attack.
        step_size: of each step; None is a quarter of epsilon.
        restarts: tries from different starts; an image counts as broken if one of them breaks it.
        images: how many are attacked, drawn by ``seed``.
        seed: of the draw and of the starts.
        batch: images in one forward.

    Raises:
        OptionError: a value that no attack can have.
    """

    epsilon: float = 8 / 255
    steps: int = 50
    step_size: float | None = None
    restarts: int = 1
    images: int = 500
    seed: int = 0
    batch: int = 128

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        if self.step_size is not None and not (0 < self.step_size <= 1):
            raise OptionError(f"The step size must be above 0 and at most 1, not {self.step_size:g}. Usual: 2/255.")
        for name in ("steps", "restarts", "images", "batch"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be 1 or more, not {getattr(self, name)}.")

    @property
    def step(self) -> float:
        """The step size, the default worked out."""
        return self.epsilon / 4 if self.step_size is None else self.step_size

    def describe(self) -> str:
        """In a few words."""
        tries = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"L-inf epsilon {as_text(self.epsilon)}, {self.steps} steps of {as_text(self.step)}{tries}"

    def as_record(self) -> dict[str, Any]:
        return asdict(self) | {"step_size": self.step, "norm": "inf"}


def parse_fraction(text: str, name: str) -> float:
    """``8/255`` or ``0.03`` as a number.

    Raises:
        OptionError: it is neither.
    """
    value = fraction(text)
    if not math.isfinite(value):
        raise OptionError(f"{name} must be a number such as 8/255 or 0.03, not {text!r}.")
    return value


def as_text(value: float) -> str:
    """A number as people of the field write it: in 255ths where it is one."""
    return in_255ths(value, digits=4)
