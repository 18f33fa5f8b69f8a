"""A budget held while a router learns: a PI controller of p, of a ratio, or of an offset of null routes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from coterie.errors import OptionError


@dataclass(frozen=True)
class Controller:
    """Moves ``value`` until the mean number of experts is ``target`` (proportional and integral, as in DTop-p,
    arXiv 2512.13996).

    Pure: `update` returns the next state, whose fields are plain numbers that a checkpoint can hold. In velocity form,
    so a value at its limit does not wind up.

    Args:
        target: mean experts per item.
        value: where to start.
        low, high: limits of ``value``.
        proportional, integral: gains, per relative error: an error of 10 % moves the value by a tenth of
            ``integral`` each time.
        rising: whether a higher value gives more experts: True for p, False for min-p's ratio and an offset of nulls.
        error: the last relative error, None before the first measurement.

    Raises:
        OptionError: the target is not above 0, or the limits do not hold the value.
    """

    target: float
    value: float
    low: float = 0.0
    high: float = 1.0
    proportional: float = 0.1
    integral: float = 0.02
    rising: bool = True
    error: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.target < math.inf:
            raise OptionError(f"a target of {self.target!r} experts is not allowed: give a number above 0.")
        if not self.low <= self.value <= self.high:
            raise OptionError(f"the value {self.value!r} is not between its limits {self.low} and {self.high}.")

    def update(self, measured: float) -> Controller:
        """The state after a step that used ``measured`` experts per item.

        Raises:
            OptionError: ``measured`` is not a finite number.
        """
        if not math.isfinite(measured):
            raise OptionError(f"{measured!r} experts per item were measured: a mean needs at least one item.")
        error = (self.target - measured) / self.target
        change = 0.0 if self.error is None else self.proportional * (error - self.error)
        step = change + self.integral * error
        value = self.value + (step if self.rising else -step)
        return replace(self, value=min(max(value, self.low), self.high), error=error)
