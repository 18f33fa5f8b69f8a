"""Time, real or made up."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod


class Clock(ABC):
    """Seconds since some moment, never going back. Thread-safe."""

    @abstractmethod
    def now(self) -> float:
        """Seconds."""

    @abstractmethod
    def sleep_until(self, moment: float) -> None:
        """Return when `now` has reached ``moment``; at once when it has passed."""


class WallClock(Clock):
    """The machine's monotonic clock; `sleep_until` blocks."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep_until(self, moment: float) -> None:
        time.sleep(max(0.0, moment - self.now()))


class VirtualClock(Clock):
    """Starts at zero and moves only by `sleep_until`, which returns at once."""

    def __init__(self) -> None:
        self._now = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        return self._now

    def sleep_until(self, moment: float) -> None:
        with self._lock:
            self._now = max(self._now, moment)
