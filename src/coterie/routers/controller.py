"""A budget held while a router learns: a PI controller of p, of min-p's ratio, or of an offset of null routes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from coterie.errors import OptionError


@dataclass(frozen=True)
class Controller:
    """Moves ``value`` until the mean number of experts is ``target`` (DTop-p, arXiv 2512.13996, has one for p).

    Pure: `update` returns the next state, whose fields are plain numbers that a checkpoint can hold. A share of
    probability is moved on the logit scale, where a step means about the same to an undecided router of 64 experts and
    to a decided one of 8; anything else as it is. In velocity form, so a value at its limit does not wind up.

    Args:
        target: mean experts per item.
        value: where to start.
        low, high: limits of ``value``; for a share above 0 and below 1.
        share: whether ``value`` is p or a ratio; False for an offset of logits, with limits such as -10 and 10.
        rising: whether a higher value gives more experts: True for p, False for a ratio and an offset of nulls.
        proportional, integral: gains on the relative error; stable where a step of 1 changes the experts by less
            than 2.6 times, which it does in all three cases.
        error: the last relative error, None before the first measurement.

    Raises:
        OptionError: the target is not above 0, or the limits do not hold the value.
    """

    target: float
    value: float
    low: float = 1e-4
    high: float = 0.9999
    share: bool = True
    rising: bool = True
    proportional: float = 0.3
    integral: float = 0.15
    error: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target < math.inf:
            raise OptionError(f"a target of {self.target!r} experts is not allowed: give a number above 0.")
        if not self.low <= self.value <= self.high:
            raise OptionError(f"the value {self.value!r} is not between its limits {self.low} and {self.high}.")
        if self.share and not 0 < self.low <= self.high < 1:
            raise OptionError(f"a share has limits above 0 and below 1, not {self.low} and {self.high}.")

    def update(self, measured: float) -> Controller:
        """The state after a step that used ``measured`` experts per item.

        Raises:
            OptionError: ``measured`` is not a finite number.
        """
        if not math.isfinite(measured):
            raise OptionError(f"{measured!r} experts per item were measured: a mean needs at least one item.")
        error = (self.target - measured) / self.target
        change = 0.0 if self.error is None else self.proportional * (error - self.error)
        step = (change + self.integral * error) * (1 if self.rising else -1)
        value = _moved(self.value, step) if self.share else self.value + step
        return replace(self, value=min(max(value, self.low), self.high), error=error)


def _moved(share: float, step: float) -> float:
    """``share`` after ``step`` on the logit scale; a step too large for exp lands at the limits anyway."""
    odds = share / (1 - share) * math.exp(min(max(step, -50.0), 50.0))
    return odds / (1 + odds)
