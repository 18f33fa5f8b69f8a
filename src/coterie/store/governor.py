"""Reading ahead only while it pays."""

from __future__ import annotations

from statistics import median

from coterie.errors import OptionError


class Governor:
    """Tries reading ahead in alternating blocks of steps, and keeps it on only for a measured gain.

    A trial is one window: blocks off, on, off, on; the first step of a block is not counted, since
    the block before still works in it. Reading ahead stays on where the median cost of its steps is
    more than ``gain`` below that of the others, is watched from then on, and tried again when a
    window costs as much as without. Otherwise it is off for ``rest`` windows, then tried again.
    Whatever the prediction, it is off two windows after it stopped paying. Not thread-safe.

    Args:
        window: steps of a trial, a multiple of 4 and at least 8.
        gain: the share that must be saved.
        rest: windows between a failed trial and the next.
    """

    def __init__(self, window: int = 32, gain: float = 0.05, rest: int = 8) -> None:
        if window < 8 or window % 4:
            raise OptionError(f"window must be a multiple of 4 and at least 8, found {window}.")
        self._window, self._gain, self._rest = window, gain, rest
        self._state = "trial"
        self._steps = 0
        self._without: list[float] = []
        self._with: list[float] = []
        self._threshold = 0.0

    @property
    def on(self) -> bool:
        """Whether to read ahead in the present step."""
        if self._state == "trial":
            return bool(self._steps // self._block % 2)
        return self._state == "on"

    def observe(self, cost: float) -> None:
        """A step has ended that cost so much: seconds of stall, or of anything that should be small."""
        if self._state != "trial":
            self._with.append(cost)
        elif self._steps % self._block:
            (self._with if self.on else self._without).append(cost)
        self._steps += 1
        if self._steps >= self._window * (self._rest if self._state == "off" else 1):
            self._decide()

    @property
    def _block(self) -> int:
        return self._window // 4

    def _decide(self) -> None:
        if self._state == "trial":
            self._threshold = median(self._without) * (1 - self._gain)
            self._state = "on" if median(self._with) < self._threshold else "off"
        elif self._state == "off" or median(self._with) >= self._threshold:
            self._state = "trial"
        self._steps = 0
        self._with.clear()
        self._without.clear()
